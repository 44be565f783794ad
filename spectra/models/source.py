"""A checkpoint that a user named: resolved once, then passed to everything that needs it."""

from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spectra.checkpoint.adapter import Adapter, adapter_of
from spectra.checkpoint.address import Address, home_of, one_address, open_folder
from spectra.checkpoint.checkpoint import ADAPTER, Checkpoint, open_checkpoint
from spectra.checkpoint.compressed import is_compressed
from spectra.checkpoint.content import content_of
from spectra.checkpoint.gguf_file import gguf_parts
from spectra.checkpoint.shards import is_weights
from spectra.checkpoint.spectra_config import SpectraConfig
from spectra.models.messages import loading
from spectra_data.errors import InputError
from spectra_data.pointers import require_fetched
from spectra_data.reading import reading, require_utf8

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
"""Files that belong to a model besides its weights and configuration."""


UNTIED = "output.weight"
"""llama.cpp's name of a head of its own."""


class Source:
    """A checkpoint by its address: a folder, a file, a hub name, an adapter's folder.

    Each property is computed once, on first use. For an adapter's folder, all but `adapter` are
    those of its base.

    Parameters
    ----------
    address
        Address as the user typed it.

    Examples
    --------
    >>> source = Source("runs/compressed")
    >>> source.checkpoint.matrices, source.tokenizer, source.is_gguf
    """

    def __init__(self, address: str) -> None:
        self.address = address

    @staticmethod
    def of(named: "str | Path | Source") -> "Source":
        """The source at an address; a source is returned unchanged."""
        return named if isinstance(named, Source) else Source(str(named))

    def __str__(self) -> str:
        return self.address

    @cached_property
    def adapter(self) -> Adapter | None:
        """The adapter that finetuning wrote, if the address is its folder."""
        return adapter_of(self.address)

    @cached_property
    def base(self) -> "Source":
        """The checkpoint that the adapter changes; this one if it is not an adapter."""
        return self if self.adapter is None else Source(self.adapter.base)

    @cached_property
    def place(self) -> Address:
        """Parsed address of the checkpoint, or of the adapter's base."""
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
        """The same source, with all towers if one of these matrices is outside the language
        model.
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
        """The description that `spectra compress` wrote."""
        return SpectraConfig.of(self.config.to_dict())

    @cached_property
    def is_peft(self) -> bool:
        """Whether it is a folder that `peft` wrote: an adapter without a model."""
        folder = Path(self.address)
        return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()

    @cached_property
    def is_left_to_transformers(self) -> bool:
        """Whether only transformers finds the files: those of a hub, or of a `peft` adapter."""
        return self.is_peft or self.place.is_hub_name

    @cached_property
    def gguf_files(self) -> list[Path]:
        """The files of a GGUF model in their order, of which the first describes it."""
        folder, _ = open_folder(self.place)
        home = Path(self.place.place)
        home = home if home.is_dir() else home.parent
        return [home / name for name in gguf_parts(folder, folder.named)]

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `from_pretrained`: a folder, a hub name with revision, or a GGUF file.

        Raises
        ------
        InputError
            When transformers cannot load it.
        """
        if self.base is not self:
            return self.base.arguments
        if self.is_peft:
            return {"pretrained_model_name_or_path": self.address}
        path = Path(self.place.place)
        if path.suffix == ".gguf" or _only_gguf(path):
            folder = path if path.is_dir() else path.parent
            return {
                "pretrained_model_name_or_path": str(folder),
                "gguf_file": self.gguf_files[0].name,
            }
        if path.is_file():
            return {"pretrained_model_name_or_path": str(path.parent)}
        if path.is_dir():
            return {"pretrained_model_name_or_path": str(home_of(path))}
        named = {"pretrained_model_name_or_path": self.place.place}
        return named | ({"revision": self.place.revision} if self.place.revision else {})

    @cached_property
    def config(self) -> Any:
        """Its configuration as an object of transformers.

        Raises
        ------
        InputError
            When transformers cannot load it.
        """
        if self.base is not self:
            return self.base.config
        from transformers import AutoConfig

        with loading(self.address):
            config = AutoConfig.from_pretrained(**self.arguments)
        if (
            self.is_gguf and len(self.gguf_files) > 1
        ):  # the head may be in another file than the first
            config.tie_word_embeddings = UNTIED not in self.checkpoint.stored.tensors
        return config

    @property
    def dtype(self) -> torch.dtype:
        """Stored dtype of its weights; for GGUF, bfloat16, in which they are stored again."""
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

        require_utf8(self.arguments["pretrained_model_name_or_path"])
        require_fetched(Path(self.arguments["pretrained_model_name_or_path"]))
        try:
            with loading(self.address):
                # do not read the configuration twice
                known = {"config": self.config} if "config" in self.__dict__ else {}
                tokenizer = AutoTokenizer.from_pretrained(**self.arguments, **known)
        except InputError as error:
            if not Path(self.address).expanduser().exists():  # the hub may be unreachable
                raise
            raise InputError(
                f"{self} has no tokenizer: put one next to it, or name one with --tokenizer"
            ) from error
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise InputError(f"{self} has no tokenizer.json: name a tokenizer with --tokenizer")
        return tokenizer

    def copy_companions(self, out: Path) -> list[str]:
        """Copy the files of tokenizer and generation to a folder; return the copied names."""
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


def _only_gguf(folder: Path) -> bool:
    """Whether all weights of a folder are GGUF files."""
    if not folder.is_dir():
        return False
    suffixes = {path.suffix for path in folder.iterdir() if is_weights(path.name)}
    return suffixes == {".gguf"}
