"""A checkpoint that a user named: resolved once, and handed to everything that needs it."""

from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spectra.checkpoint.adapter import Adapter, adapter_of
from spectra.checkpoint.address import Address, one_address, open_folder
from spectra.checkpoint.checkpoint import ADAPTER, Checkpoint, open_checkpoint
from spectra.checkpoint.compressed import is_compressed
from spectra.checkpoint.content import content_of
from spectra.checkpoint.gguf_file import gguf_parts
from spectra.checkpoint.shards import is_weights
from spectra.checkpoint.spectra_config import SpectraConfig
from spectra.models.messages import loading
from spectra_data.errors import InputError
from spectra_data.pointers import require_fetched
from spectra_data.reading import reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files that belong to a model beside its weights and configuration."""


class Source:
    """A checkpoint by its address: a folder, a file, a hub name, an adapter's folder.

    What is asked for is found once, when it is first asked for; of an adapter's folder, all but the
    adapter itself is its base's.

    Parameters
    ----------
    address
        As a user types it.

    Examples
    --------
    >>> source = Source("runs/compressed")
    >>> source.checkpoint.matrices, source.tokenizer, source.is_gguf
    """

    def __init__(self, address: str) -> None:
        self.address = address

    @staticmethod
    def of(named: "str | Path | Source") -> "Source":
        """The source that is named, or given."""
        return named if isinstance(named, Source) else Source(str(named))

    def __str__(self) -> str:
        return self.address

    @cached_property
    def adapter(self) -> Adapter | None:
        """What finetuning wrote beside a base, if the address is its folder."""
        return adapter_of(self.address)

    @cached_property
    def base(self) -> "Source":
        """Of an adapter, the checkpoint that it changes; else this one."""
        return self if self.adapter is None else Source(self.adapter.base)

    @cached_property
    def place(self) -> Address:
        """Where it lies."""
        return one_address(self.address) if self.base is self else self.base.place

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its matrices and tensors."""
        return open_checkpoint(self.place) if self.base is self else self.base.checkpoint

    @cached_property
    def content(self) -> str | None:
        """See `content_of`."""
        return content_of(self.place, self.checkpoint)

    def spanning(self, names: Collection[str]) -> "Source":
        """The same with all towers, if one of some matrices lies in another than the language
        model's.
        """
        opened = self.checkpoint.spanning(names)
        if opened is self.checkpoint:
            return self
        found = Source(self.address)
        known = {name: value for name, value in vars(self).items() if name != "base"}
        vars(found).update(known, checkpoint=opened)
        return found

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file, or a folder with no other weights."""
        return "gguf_file" in self.arguments

    @property
    def is_compressed(self) -> bool:
        """Whether `spectra compress` wrote it."""
        return is_compressed(self.config.to_dict())

    @cached_property
    def compressed(self) -> SpectraConfig:
        """What `spectra compress` says of it."""
        return SpectraConfig.of(self.config.to_dict())

    @cached_property
    def is_peft(self) -> bool:
        """Whether it is an adapter's folder as `peft` writes it, without a model."""
        folder = Path(self.address)
        return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()

    @cached_property
    def is_left_to_transformers(self) -> bool:
        """Whether it alone knows the files: a hub's, or a `peft` adapter with its base."""
        return self.is_peft or self.place.is_hub_name

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """How transformers names it: a folder, a hub name with revision, or a GGUF file.

        Raises
        ------
        InputError
            When transformers has no name for it.
        """
        if self.base is not self:
            return self.base.arguments
        if self.is_peft:
            return {"pretrained_model_name_or_path": self.address}
        path = Path(self.place.place)
        if path.suffix == ".gguf" or _only_gguf(path):
            folder = path if path.is_dir() else path.parent
            return {"pretrained_model_name_or_path": str(folder), "gguf_file": self._single_gguf()}
        if path.is_file():
            return {"pretrained_model_name_or_path": str(path.parent)}
        named = {"pretrained_model_name_or_path": self.place.place}
        return named | ({"revision": self.place.revision} if self.place.revision else {})

    @cached_property
    def config(self) -> Any:
        """Its configuration, as transformers has it.

        Raises
        ------
        InputError
            When transformers cannot load it.
        """
        if self.base is not self:
            return self.base.config
        from transformers import AutoConfig

        with loading(self.address):
            return AutoConfig.from_pretrained(**self.arguments)

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are stored in; a GGUF file's, what they are stored as again."""
        if self.is_gguf:
            return torch.bfloat16
        return getattr(self.config, "dtype", None) or torch.float32

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """Its own tokenizer.

        Raises
        ------
        InputError
            When it has none.
        """
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        require_fetched(Path(self.arguments["pretrained_model_name_or_path"]))
        try:
            with loading(self.address):
                # a configuration that is there is not read again
                known = {"config": self.config} if "config" in self.__dict__ else {}
                tokenizer = AutoTokenizer.from_pretrained(**self.arguments, **known)
        except InputError as error:
            if not Path(self.address).expanduser().exists():  # the hub may be out of reach
                raise
            raise InputError(
                f"{self} has no tokenizer: put one beside it, or name it by --tokenizer"
            ) from error
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise InputError(f"{self} has no tokenizer.json: name a tokenizer by --tokenizer")
        return tokenizer

    def copy_companions(self, out: Path) -> list[str]:
        """Copy the tokenizer's and generation's files to a folder; the names of those copied."""
        if self.is_gguf:
            try:
                self.tokenizer.save_pretrained(out)
            except InputError:
                return []
            return ["tokenizer.json"]
        folder, _ = open_folder(self.place)
        out.mkdir(parents=True, exist_ok=True)
        copied = [name for name in COMPANIONS if name in folder.names]
        for name in copied:
            with reading(name), folder.open(name) as file:
                (out / name).write_bytes(bytes(file.read(0, file.size).numpy()))
        return copied

    def _single_gguf(self) -> str:
        """The file of a model in GGUF, which transformers reads from one file alone."""
        folder, _ = open_folder(self.place)
        names = gguf_parts(folder, folder.named)
        if len(names) > 1:
            raise InputError(
                f"{self} is a model in {len(names)} GGUF files, and transformers reads one: join "
                f"them by llama.cpp's `llama-gguf-split --merge {names[0]} JOINED.gguf`"
            )
        return names[0]


def _only_gguf(folder: Path) -> bool:
    """Whether a folder's weights are GGUF files alone."""
    if not folder.is_dir():
        return False
    suffixes = {path.suffix for path in folder.iterdir() if is_weights(path.name)}
    return suffixes == {".gguf"}
