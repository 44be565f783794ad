"""Rows of training steps: collected step by step, written many at once."""

import time
from collections.abc import Mapping

import torch

from spectra.recording.clipping import Clipping
from spectra.store.schema import TRAIN
from spectra_data.errors import InputError

Number = float | torch.Tensor


class TrainRows:
    """Rows of `train`; the newest stays open, since its validation loss may still come."""

    def __init__(self) -> None:
        self._next: dict[str, Number] = {}
        self._clipping = Clipping()
        self._open: tuple[dict[str, Number], Clipping] | None = None
        self._complete: list[tuple[dict[str, Number], Clipping]] = []
        self._tokens: float | None = None
        self._time = time.perf_counter()

    def __len__(self) -> int:
        return len(self._complete)

    def log(self, metrics: Mapping[str, Number]) -> None:
        """Add metrics of the next step."""
        self._next |= _checked(metrics)

    def log_last(self, metrics: Mapping[str, Number]) -> None:
        """Add metrics of the last step made."""
        checked = _checked(metrics)
        if self._open is not None:
            self._open[0].update(checked)

    def log_clipping(self, clipping: Clipping) -> None:
        """Set the clipping of the next step's gradients."""
        self._clipping = clipping

    def begin(self, step: int, learning_rate: float) -> None:
        """Open the row of a step that was made."""
        now = time.perf_counter()
        row = {"train_step": step, "learning_rate": learning_rate, **self._next}
        if "tokens" in row:
            tokens = float(row["tokens"])
            if self._tokens is not None:
                row["tokens_per_second"] = (tokens - self._tokens) / (now - self._time)
            self._tokens = tokens
        self._time = now
        self._next = {}
        self._open = row, self._clipping

    def finish(self) -> None:
        """Complete the row of the last step made."""
        if self._open is not None:
            self._complete.append(self._open)
            self._open = None

    def take(self) -> list[dict[str, float]]:
        """Return the complete rows as numbers, each once."""
        rows, self._complete = self._complete, []
        return [_resolved(row, clipping) for row, clipping in rows]


def _resolved(row: Mapping[str, Number], clipping: Clipping) -> dict[str, float]:
    seen = {}
    if clipping.calls:
        seen = {"gradient_norm": clipping.norm, "clip_factor": clipping.factor}
    return seen | {name: float(value) for name, value in row.items()}


def _checked(metrics: Mapping[str, Number]) -> dict[str, Number]:
    checked: dict[str, Number] = {}
    for name, value in metrics.items():
        if name not in TRAIN:
            raise InputError(f"no training metric {name!r}; there are: {', '.join(TRAIN)}")
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            checked[name] = value.detach().clone()
            continue
        try:
            checked[name] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"the metric {name} is a number, not {value!r}") from error
    return checked
