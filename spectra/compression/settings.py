"""The options of `compress`, and the settings that follow from them."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import tyro

from spectra.calibration.options import Calibration
from spectra.keywords import Share
from spectra.storages.registry import BUDGET_STORAGE, STORAGES
from spectra_data.errors import InputError

Dtype = Literal["bfloat16", "float16", "float32"]
DTYPES: tuple[str, ...] = get_args(Dtype)
Method = Literal["svd", "asvd", "whiten", "fisher", "sequential"]
METHODS: tuple[str, ...] = get_args(Method)
SHRINKAGE = {"fisher": 0.01}
"""Default shrinkage of covariances towards the identity, by method; else 0."""


@dataclass(frozen=True)
class Settings:
    """Settings of the weighting of errors, with defaults resolved.

    Raises
    ------
    InputError
        When there is no such method.
    """

    method: str = "svd"
    calibration: Calibration = field(default_factory=Calibration)
    shrinkage: float | None = None
    """Shrinkage of covariances towards the identity, from 0 to below 1; None for the default."""
    asvd_exponent: float = 0.5

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"no method {self.method!r}; there are: {', '.join(METHODS)}")
        if not 0 <= self.shrink < 1:
            raise InputError(f"shrinkage is at least 0 and below 1, not {self.shrinkage}")

    @property
    def calibrated(self) -> bool:
        """Whether the method needs text."""
        return self.method != "svd"

    @property
    def shrink(self) -> float:
        """Shrinkage, with the default resolved."""
        return SHRINKAGE.get(self.method, 0.0) if self.shrinkage is None else self.shrinkage

    def weighting(self) -> dict[str, Any]:
        """What decompositions depend on besides text and weights, as JSON."""
        about: dict[str, Any] = {"method": self.method, "shrinkage": self.shrink}
        if self.method == "asvd":
            about["exponent"] = self.asvd_exponent
        if self.method == "fisher":
            about["seed"] = self.calibration.seed
        return about

    def described(self) -> dict[str, Any]:
        """The settings as JSON, for metadata and keys."""
        about: dict[str, Any] = {"method": self.method}
        if self.method == "asvd":
            about["exponent"] = self.asvd_exponent
        if self.calibrated:
            about |= {"shrinkage": self.shrink, "calibration": self.calibration.described()}
        return about


@dataclass(frozen=True, kw_only=True)
class Compression:
    """Options of a compression.

    Parameters
    ----------
    budget
        Fraction of block parameters to keep, e.g. 0.8, instead of a map: ranks are allocated by
        the least expected loss.
    method
        Method of truncation. svd: the paper's, data-free; asvd: inputs scaled by their size;
        whiten: inputs whitened (SVD-LLM); fisher: inputs and the loss's gradients whitened;
        sequential: each block on the outputs of the compressed ones before it. By default svd
        with a map, fisher with a budget.
    storage
        Storage of factored matrices: one of `STORAGES`; by default the map's own, or pivoted with a
        budget.
    shrinkage
        Shrinkage of covariances towards the identity, from 0 to below 1; by default 0.01 for
        fisher, else 0.
    align
        Multiple to which ranks are rounded down, with a budget; 16 by default, which suits kernels.
    dtype
        Precision of stored weights; the checkpoint's own by default.
    calibration
        Text for all methods but svd.
    keep_scratch
        Keep what calibration computed on disk, however large, so that other budgets or maps of the
        same model and text take minutes; above 8 GB it is removed otherwise.
    """

    budget: Share | None = None
    method: Method | None = None
    storage: Annotated[
        str | None,
        tyro.conf.arg(
            metavar=f"{{{','.join(STORAGES)}}}",
            help=f"Storage of factored matrices. {STORAGES.help()}. By default the map's own; "
            f"{BUDGET_STORAGE} with --budget.",
        ),
    ] = None
    shrinkage: Share | None = None
    align: int | None = None
    dtype: Dtype | None = None
    calibration: Calibration = field(default_factory=Calibration)
    keep_scratch: bool = False

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


def require_known_dtype(name: str) -> None:
    """Require the name of a dtype that weights are stored in.

    Raises
    ------
    InputError
        When there is none; the message lists those that exist.
    """
    if name not in DTYPES:
        raise InputError(f"no dtype {name!r}; there are: {', '.join(DTYPES)}")
