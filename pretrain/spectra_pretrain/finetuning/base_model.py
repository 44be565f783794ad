"""The checkpoint that is finetuned: its model, tokenizer, and rank map where it is compressed."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from spectra.allocation.rankmap import RankMap
from spectra.calibration.text import tokenizer_of
from spectra.models.loading import load_whole
from spectra.models.source import Source
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
    def of(source: Source, before: "Origin | None" = None) -> "Origin":
        """A checkpoint's; its files are read only where their sizes and dates are others."""
        identity = source.checkpoint.identity
        if before is not None and before.identity == identity:
            return before
        return Origin(identity, source.content)

    def is_same(self, other: "Origin") -> bool:
        """Whether it is the same checkpoint, or a copy of it."""
        same = self.content is not None and self.content == other.content
        return same or self.identity == other.identity


@dataclass(frozen=True)
class BaseModel:
    """A checkpoint by its address."""

    address: str
    named_tokenizer: str | None = None

    def __post_init__(self) -> None:
        if self.source.adapter is not None:
            raise InputError(
                f"{self.address} is an adapter: `spectra merge --compressed` makes a checkpoint "
                "of it"
            )

    @cached_property
    def source(self) -> Source:
        """Where it lies, and what is there."""
        return Source(self.address)

    @cached_property
    def rank_map(self) -> RankMap | None:
        """Of a compressed checkpoint."""
        return self.source.compressed.rank_map if self.source.is_compressed else None

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The one that was named, or its own."""
        return tokenizer_of(self.source, self.named_tokenizer)

    def model(self) -> Any:
        """A fresh copy, in the numbers that it is stored in; a GGUF file's in float32."""
        dtype: torch.dtype | str = torch.float32 if self.source.is_gguf else "auto"
        return load_whole(self.source, dtype).model

    @property
    def stored(self) -> torch.dtype:
        """What its weights are saved as again."""
        return self.source.dtype
