"""Batches to train on, as a pure function of the step's number, and batches to validate on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from spectra_data.windows import Windows, training_batch

Batch = Mapping[str, torch.Tensor]
"""Arguments of a causal language model: input_ids and labels, (windows, tokens), -100 for a label
that does not count; an attention_mask if windows are padded."""


class Batches(Protocol):
    """The batches of a run."""

    def read(self, step: int) -> Batch:
        """The batch of a step, from 0: the same at every call."""
        ...


class Validation(Protocol):
    """Batches that training never sees."""

    def batches(self) -> Iterator[Batch]:
        """All batches."""
        ...


@dataclass(frozen=True)
class WindowBatches:
    """Windows of a corpus, in an order drawn from the seed."""

    windows: Windows
    seed: int
    size: int

    def read(self, step: int) -> Batch:
        """See `Batches`."""
        return of_windows(training_batch(self.windows, seed=self.seed, step=step, size=self.size))


@dataclass(frozen=True)
class WindowValidation:
    """The first windows of a part, up to a number of tokens."""

    windows: Windows
    tokens: int
    size: int
    """Windows per batch."""

    def batches(self) -> Iterator[Batch]:
        """See `Validation`."""
        count = min(len(self.windows), max(1, self.tokens // self.windows.length))
        for first in range(0, count, self.size):
            indices = np.arange(first, min(first + self.size, count))
            yield of_windows(self.windows.read(indices))


def of_windows(tokens: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> Batch:
    """A batch of windows; every token but a window's first is a label."""
    ids = torch.from_numpy(tokens)
    return {"input_ids": ids, "labels": ids}


def tokens_of(batch: Batch) -> int:
    """Number of tokens that are not padding."""
    mask = batch.get("attention_mask")
    return int(batch["input_ids"].numel() if mask is None else mask.sum())


def labels_of(batch: Batch) -> int:
    """Number of labels that the loss is a mean over; the first of a window is never counted."""
    return int((batch["labels"][:, 1:] != -100).sum())


def split(batch: Batch, size: int) -> list[Batch]:
    """Parts of `size` windows each, in order."""
    parts = {name: torch.split(value, size) for name, value in batch.items()}
    count = len(parts["input_ids"])
    return [{name: part[i] for name, part in parts.items()} for i in range(count)]


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""
    return {name: value.to(device) for name, value in batch.items()}
