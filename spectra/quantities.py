"""The quantities that are recorded of a matrix at a snapshot: one entry each.

Recorder, layout, verification, page and report iterate over this table. To add a quantity, add its
entry here, and the reader in `spectra.recording.readers` that it names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from spectra.recording.readers import Reader

Sides = Callable[[int, int], tuple[int, int]]


def as_the_weight(rows: int, cols: int) -> tuple[int, int]:
    """The sides of a quantity that has the weight's shape."""
    return rows, cols


@dataclass(frozen=True)
class Quantity:
    """A matrix that goes with a weight, of which singular values are recorded."""

    name: str
    """Name in the store, in options and in addresses."""
    noun: str
    """Plural, for headings and choices: ``gradients``."""
    long_name: str
    """Description of its singular values in the store."""
    about: str
    """Sentence for page and report that says what its spectra show."""
    worth: int
    """Order in which it is kept within the overhead, `EXTRAS` included: the lowest first."""
    color: str
    """Color of its lines."""
    reader: str | None
    """``module:NAME`` of its `Reader`; None for the gradient on the probe batch."""
    on_request: bool = False
    """Whether it is recorded only if it is named."""
    sides: Sides = as_the_weight
    """Function from the weight's (rows, cols) to its own."""
    may_lack: Literal["nothing", "first", "any"] = "any"
    """Snapshots in which it may be missing if a store does not say why: none; the first, and those
    after it for as long as it was missing; or any matrix of any snapshot."""

    @property
    def label(self) -> str:
        """Singular, as a reader sees it."""
        return self.name.replace("_", " ")

    def length(self, rows: int, cols: int) -> int:
        """Number of its singular values, from the weight's sides."""
        return min(self.sides(rows, cols))

    def read(self) -> "Reader | None":
        """The reader that takes it; None for the gradient on the probe batch."""
        if self.reader is None:
            return None
        from importlib import import_module

        module, _, name = self.reader.partition(":")
        found: Reader = getattr(import_module(module), name)
        return found


QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        Quantity(
            "weight",
            "weights",
            "singular values of the weight",
            "Brightness that moves to the left edge is a weight becoming low-rank.",
            worth=1,
            color="#2f5d8a",
            reader="spectra.recording.readers:WEIGHT",
            may_lack="nothing",
        ),
        Quantity(
            "gradient",
            "gradients",
            "singular values of the gradient on the probe batch",
            "Gradients on the probe batch.",
            worth=0,
            color="#c2571a",
            reader=None,
        ),
        Quantity(
            "training_gradient",
            "training gradients",
            "singular values of the step's own gradient, before clipping",
            "Gradients of the training step itself, before clipping.",
            worth=4,
            color="#e0a100",
            reader="spectra.recording.readers:TRAINING_GRADIENT",
            on_request=True,
        ),
        Quantity(
            "update",
            "updates",
            "singular values of the last optimizer update",
            "What the optimizer's last step added.",
            worth=3,
            color="#6b7280",
            reader="spectra.recording.readers:UPDATE",
            may_lack="first",
        ),
    )
}
"""Quantities by name, in the order of the store."""
GRADIENT = "gradient"
"""Gradient on the probe batch, of which sketches, subspaces and raw gradients are recorded."""
EXTRAS = {"sketch": 2, "subspaces": 5, "raw_gradient": 6}
"""Other records of the gradient on the probe batch, with their worth."""
DEFAULT = tuple(name for name, quantity in QUANTITIES.items() if not quantity.on_request)


def shown() -> list[str]:
    """All quantities in the order of pages: the gradient is first, with its cosines."""
    return sorted(QUANTITIES, key=lambda name: name != GRADIENT)


def worth(part: str) -> int:
    """Order in which a part of snapshots is kept within the overhead: the lowest first."""
    return QUANTITIES[part].worth if part in QUANTITIES else EXTRAS[part]
