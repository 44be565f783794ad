"""What an optimizer step sees, as a pure function of its number, and what a run is validated on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from spectra_data.windows import Windows, training_batch

Batch = Mapping[str, torch.Tensor]
"""Arguments of a causal language model: input_ids and labels, (windows, tokens), -100 where a label
does not count; an attention_mask where windows are padded."""


class Batches(Protocol):
    """The batches of a run."""

    def read(self, step: int) -> Batch:
        """The batch of a step, from 0: the same whenever it is asked for."""
        ...


class Validation(Protocol):
    """Batches that training never sees."""

    def batches(self) -> Iterator[Batch]:
        """All of them."""
        ...


@dataclass(frozen=True)
class WindowBatches:
    """Windows of a corpus, in an order of the seed's."""

    windows: Windows
    seed: int
    size: int

    def read(self, step: int) -> Batch:
        """See `Batches`."""
        return of_windows(training_batch(self.windows, seed=self.seed, step=step, size=self.size))


@dataclass(frozen=True)
class WindowValidation:
    """The first windows of a part: so many tokens, or all that there are."""

    windows: Windows
    tokens: int
    size: int
    """Windows at a time."""

    def batches(self) -> Iterator[Batch]:
        """See `Validation`."""
        count = min(len(self.windows), max(1, self.tokens // self.windows.length))
        for first in range(0, count, self.size):
            indices = np.arange(first, min(first + self.size, count))
            yield of_windows(self.windows.read(indices))


def of_windows(tokens: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> Batch:
    """Every token but a window's first is a label."""
    ids = torch.from_numpy(tokens)
    return {"input_ids": ids, "labels": ids}


def tokens_of(batch: Batch) -> int:
    """Tokens that are no padding."""
    mask = batch.get("attention_mask")
    return int(batch["input_ids"].numel() if mask is None else mask.sum())


def labels_of(batch: Batch) -> int:
    """Labels that the loss is a mean over: those of every window but the first that count."""
    return int((batch["labels"][:, 1:] != -100).sum())


def split(batch: Batch, size: int) -> list[Batch]:
    """Parts of so many windows, in order."""
    parts = {name: torch.split(value, size) for name, value in batch.items()}
    count = len(parts["input_ids"])
    return [{name: part[i] for name, part in parts.items()} for i in range(count)]


def moved(batch: Batch, device: torch.device) -> Batch:
    """The same on a device."""
    return {name: value.to(device) for name, value in batch.items()}
