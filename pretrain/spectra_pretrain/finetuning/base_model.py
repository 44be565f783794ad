"""The checkpoint that is finetuned: its model, tokenizer, and rank map if it is compressed."""

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
    """Identity of a checkpoint."""

    identity: str
    """See `Checkpoint.identity`; a copy has another."""
    content: str | None
    """See `content_of`."""

    @staticmethod
    def of(source: Source, before: "Origin | None" = None) -> "Origin":
        """The origin of a checkpoint; its files are read only if sizes or dates differ."""
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
        """Address and contents."""
        return Source(self.address)

    @cached_property
    def rank_map(self) -> RankMap | None:
        """Rank map of a compressed checkpoint; None for any other."""
        return self.source.compressed.rank_map if self.source.is_compressed else None

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The named tokenizer, or the checkpoint's own."""
        return tokenizer_of(self.source, self.named_tokenizer)

    def model(self) -> Any:
        """A fresh copy of the model in its stored precision; from a GGUF file, in float32."""
        dtype: torch.dtype | str = torch.float32 if self.source.is_gguf else "auto"
        return load_whole(self.source, dtype).model

    @property
    def stored(self) -> torch.dtype:
        """Precision in which its weights are saved again."""
        return self.source.dtype
