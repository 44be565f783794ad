"""How a checkpoint is compressed: the options of `compress`, and what they come to."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import tyro

from spectra.calibration.options import Calibration
from spectra.storages.registry import BUDGET_STORAGE, STORAGES
from spectra_data.errors import InputError

Method = Literal["svd", "asvd", "whiten", "fisher", "sequential"]
METHODS: tuple[str, ...] = get_args(Method)
SHRINKAGE = {"fisher": 0.01}
"""Of covariances towards the identity, by method; none elsewhere."""


@dataclass(frozen=True)
class Settings:
    """How errors are weighed, with defaults resolved.

    Raises
    ------
    InputError
        When there is no such method.
    """

    method: str = "svd"
    calibration: Calibration = field(default_factory=Calibration)
    shrinkage: float | None = None
    """Of covariances towards the identity, from 0 to 1; the method's own where it is None."""
    asvd_exponent: float = 0.5

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"no method {self.method!r}; there are: {', '.join(METHODS)}")
        if not 0 <= self.shrink < 1:
            raise InputError(f"shrinkage is from 0 to below 1, not {self.shrinkage}")

    @property
    def calibrated(self) -> bool:
        """Whether the method needs text."""
        return self.method != "svd"

    @property
    def shrink(self) -> float:
        """Shrinkage, resolved."""
        return SHRINKAGE.get(self.method, 0.0) if self.shrinkage is None else self.shrinkage

    def described(self) -> dict[str, Any]:
        """For metadata and keys."""
        about: dict[str, Any] = {"method": self.method}
        if self.method == "asvd":
            about["exponent"] = self.asvd_exponent
        if self.calibrated:
            about |= {"shrinkage": self.shrink, "calibration": dataclasses.asdict(self.calibration)}
        return about


@dataclass(frozen=True, kw_only=True)
class Compression:
    """How a checkpoint is compressed.

    Parameters
    ----------
    budget
        Fraction of block parameters to keep, e.g. 0.8, in place of a map: ranks are allocated on
        the way by the least expected loss.
    method
        Method of truncation. svd: the paper's, data-free; asvd: inputs scaled by their size;
        whiten: inputs whitened (SVD-LLM); fisher: inputs and the loss's gradients whitened;
        sequential: each block on what the compressed ones before it give. By default svd with a
        map, fisher with a budget.
    storage
        Storage of factored matrices: one of `STORAGES`; by default the map's own, and with a budget
        pivoted.
    shrinkage
        Shrinkage of covariances towards the identity, 0 to 1; by default 0.01 for fisher, else 0.
    align
        Number that ranks are multiples of, with a budget; 16 by default, which kernels like.
    dtype
        Precision of stored weights; the checkpoint's own by default.
    calibration
        Text for all methods but svd.
    """

    budget: float | None = None
    method: Method | None = None
    storage: Annotated[
        str | None,
        tyro.conf.arg(
            metavar=f"{{{','.join(STORAGES)}}}",
            help=f"Storage of factored matrices. {STORAGES.help()}. By default as the map says; "
            f"{BUDGET_STORAGE} with --budget.",
        ),
    ] = None
    shrinkage: float | None = None
    align: int | None = None
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    calibration: Calibration = field(default_factory=Calibration)

    @property
    def settings(self) -> Settings:
        """Method and calibration, with defaults resolved.

        Raises
        ------
        InputError
            When there is no such method.
        """
        method = self.method or ("svd" if self.budget is None else "fisher")
        return Settings(method, self.calibration, self.shrinkage)
