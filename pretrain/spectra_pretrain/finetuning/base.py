"""The checkpoint that is finetuned: its model, tokenizer, and rank map where it is compressed."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from spectra.allocation.rankmap import RankMap
from spectra.calibration.text import tokenizer_of
from spectra.checkpoint.checkpoint import open_checkpoint
from spectra.checkpoint.compressed import is_compressed
from spectra.checkpoint.content import content_of
from spectra.compression.adapter import adapter_of
from spectra.compression.config import SpectraConfig
from spectra.models.loading import is_gguf, load_config, load_whole
from spectra_data.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Origin:
    """What tells a checkpoint from any other."""

    identity: str
    """See `Checkpoint.identity`; that of a copy is another."""
    content: str | None
    """See `content_of`."""

    @staticmethod
    def of(address: str, before: "Origin | None" = None) -> "Origin":
        """A checkpoint's; its files are read only if they are not, by their looks, those before."""
        identity = open_checkpoint(address).identity
        if before is not None and before.identity == identity:
            return before
        return Origin(identity, content_of(address))

    def is_same(self, other: "Origin") -> bool:
        """Whether it is the same checkpoint, or a copy of it."""
        same = self.content is not None and self.content == other.content
        return same or self.identity == other.identity


@dataclass(frozen=True)
class Base:
    """A checkpoint by its address."""

    address: str
    named_tokenizer: str | None = None

    def __post_init__(self) -> None:
        if adapter_of(self.address) is not None:
            raise InputError(
                f"{self.address} is an adapter: `spectra merge --compressed` makes a checkpoint "
                "of it"
            )

    @cached_property
    def rank_map(self) -> RankMap | None:
        """Of a compressed checkpoint."""
        config = load_config(self.address).to_dict()
        return SpectraConfig.of(config).rank_map if is_compressed(config) else None

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The one that was named, or its own."""
        return tokenizer_of(self.address, self.named_tokenizer)

    def model(self) -> Any:
        """A fresh copy, in the numbers that it is stored in; a GGUF file's in float32."""
        dtype: torch.dtype | str = torch.float32 if is_gguf(self.address) else "auto"
        return load_whole(self.address, dtype).model

    @property
    def stored(self) -> torch.dtype:
        """What its weights are saved as again."""
        if is_gguf(self.address):
            return torch.bfloat16
        return getattr(load_config(self.address), "dtype", None) or torch.float32
