"""The rank map: rank and LRC or N-LRC of every matrix, as one versioned JSON file."""

import dataclasses
import functools
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec

from spectra.allocation.costs import (
    bytes_per_parameter,
    factored_bytes,
    factored_parameters,
)
from spectra.allocation.methods.registry import METHODS
from spectra.allocation.pricing import LRC_FACTOR
from spectra.allocation.table import to_table
from spectra.allocation.target import TARGETS, Target
from spectra.matrices import LARGEST_SIDE
from spectra.storages.registry import STORAGES
from spectra.store.destination import write_result
from spectra_data.errors import InputError
from spectra_data.fields import fault
from spectra_data.reading import read_json

SCHEMA = "spectra.rankmap/1"
Kind = Literal["LRC", "N-LRC"]
Name = Annotated[str, msgspec.Meta(pattern=r"^(?!.*[\x00-\x1f\x7f-\x9f\ud800-\udfff])")]
"""Text without control characters, which a terminal would obey."""
Side = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_SIDE)]
Parameters = Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
"""Number that every reader of JSON holds exactly."""
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
PositiveShare = Annotated[float, msgspec.Meta(gt=0, le=1)]


@dataclass(frozen=True)
class Module:
    """One matrix of a rank map."""

    name: Annotated[Name, msgspec.Meta(min_length=1)]
    layer: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
    role: Name
    rows: Side
    cols: Side
    full_rank: Side
    rank: Side
    """Rank that the allocation chose."""
    kind: Kind
    factored: bool
    """Whether it is stored as factors instead of whole."""
    relative_error: Annotated[float, msgspec.Meta(ge=0, le=1.000001)]
    r"""Relative error of the stored form: :math:`\|W - W_r\|_F / \|W\|_F`; 0 if it is whole."""
    params_dense: Parameters
    params: Parameters
    """Parameters as stored."""


@dataclass(frozen=True)
class Model:
    """The checkpoint that a map was made for."""

    name: Name = ""
    revision: str | None = None
    """Commit on a hub."""
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | None = None
    """Hash of the names and weights of its matrices, as a scan computes it."""


@dataclass(frozen=True, repr=False)
class RankMap:
    """The rank of every matrix, and its cost; validated when it is made.

    Printed, it is the table of `spectra export --format table`.

    Raises
    ------
    InputError
        When ranks, kinds, costs and totals contradict each other; one message lists all faults.
    """

    model: Model
    method: str
    threshold: Share | None
    """WeLore's cut on normalised singular values; None for methods without one."""
    storage: str
    err: Share
    """Removed ranks over all ranks, by the ranks that the allocation chose."""
    budget: PositiveShare
    """Stored fraction of block parameters."""
    modules: tuple[Module, ...]
    asked: Mapping[str, float | None] = field(default_factory=lambda: dict.fromkeys(TARGETS))
    """Target of the allocation: one of err, budget and threshold is set."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the method."""
    format: str = "BF16"
    """Stored format of a parameter, by its name in safetensors."""
    approximate: bool = False
    """Whether the spectra were approximate."""
    fused: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Layers of the model that fuse several of the matrices, with the names of these."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules", tuple(self.modules))
        if faults := _faults(self):
            more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise InputError(f"the rank map is invalid: {'; '.join(faults[:5])}{more}")

    @property
    def lrc(self) -> tuple[Module, ...]:
        """The low-rank components."""
        return tuple(module for module in self.modules if module.kind == "LRC")

    @property
    def nlrc(self) -> tuple[Module, ...]:
        """The matrices that are not low-rank components."""
        return tuple(module for module in self.modules if module.kind == "N-LRC")

    @property
    def parameters(self) -> int:
        """Block parameters as stored."""
        return sum(module.params for module in self.modules)

    @property
    def bytes(self) -> int:
        """Bytes of the block parameters as stored."""
        width = bytes_per_parameter(self.format)
        return sum(
            int(factored_bytes(m.rows, m.cols, m.rank, self.storage, self.format))
            if m.factored
            else m.params_dense * width
            for m in self.modules
        )

    @property
    def err_stored(self) -> float:
        """Removed ranks over all ranks as stored: matrices left whole lose none."""
        removed = sum(m.full_rank - m.rank for m in self.modules if m.factored)
        return removed / sum(m.full_rank for m in self.modules)

    @property
    def ranks(self) -> dict[str, int]:
        """Rank by name."""
        return {module.name: module.rank for module in self.modules}

    def __repr__(self) -> str:
        return (
            f"<RankMap of {self.model.name or 'a checkpoint'} by {self.method}: "
            f"{len(self.modules)} matrices, {len(self.lrc)} LRC, ERR {self.err:.4f}, budget "
            f"{self.budget:.4f}>"
        )

    def __str__(self) -> str:
        return to_table(self).rstrip("\n")

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        return f"<pre>{html.escape(str(self))}</pre>"

    def __getitem__(self, name: str) -> Module:
        return {module.name: module for module in self.modules}[name]

    def to_dict(self) -> dict[str, Any]:
        """Content of the JSON file."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        model, modules = fields.pop("model"), fields.pop("modules")
        return (
            {"schema": SCHEMA, "model": dataclasses.asdict(model)}
            | fields
            | {"asked": dict(self.asked), "options": dict(self.options)}
            | {"fused": {layer: list(names) for layer, names in self.fused.items()}}
            | {"modules": [dataclasses.asdict(module) for module in modules]}
        )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "RankMap":
        """Make a map from the result of `to_dict`.

        Raises
        ------
        InputError
            When it is not a valid map of this schema.
        """
        schema = fields.get("schema") if isinstance(fields, Mapping) else None
        if schema != SCHEMA:
            raise InputError(f"this is not a rank map: its schema is {schema!r}, not {SCHEMA!r}")
        given = {name: value for name, value in fields.items() if name != "schema"}
        try:
            model = Model(**given.pop("model"))
            modules = tuple(Module(**module) for module in given.pop("modules"))
            return cls(model=model, modules=modules, **given)
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(f"this is not a rank map: {error}") from error

    def to_json(self) -> str:
        """The map as JSON text; reading it back returns the same numbers, bit for bit."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the JSON file, whole or not at all.

        Raises
        ------
        InputError
            When it cannot be written.
        """
        write_result(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> "RankMap":
        """Read a JSON file.

        Raises
        ------
        InputError
            When the file is missing, or not a valid rank map.
        """
        fields = read_json(path, finite=True)
        try:
            return cls.from_dict(fields)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def kind_of(rank: int, full_rank: int, factor: float = LRC_FACTOR) -> Kind:
    """LRC if the rank is less than the factor times the full rank, else N-LRC."""
    return "LRC" if rank < factor * full_rank else "N-LRC"


def _faults(given: RankMap) -> list[str]:
    """The faults of a map, one phrase each."""
    if given.storage not in tuple(STORAGES):
        return [f"no storage {given.storage!r}; there are: {', '.join(STORAGES)}"]
    if not given.modules:
        return ["it has no modules"]
    if found := _type_faults(given):
        return found
    names = [module.name for module in given.modules]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        found.append(f"it holds {twice[0]} twice")
    factor = float(given.options.get("lrc_factor", LRC_FACTOR))
    for module in given.modules:
        found += [f"{module.name}: {wrong}" for wrong in _module_faults(module, given, factor)]
    if found:
        return found
    full = sum(module.full_rank for module in given.modules)
    dense = sum(module.params_dense for module in given.modules)
    reached = {
        "err": sum(module.full_rank - module.rank for module in given.modules) / full,
        "budget": given.parameters / dense,
    }
    for name, value in reached.items():
        stated = getattr(given, name)
        if not math.isclose(stated, value, abs_tol=1e-9):
            found.append(f"it states {name} {stated}, but its modules have {value:.9f}")
    return found + _target_faults(given)


def _target_faults(given: RankMap) -> list[str]:
    """Contradictions of target and threshold with the method; other tools' methods are free."""
    if set(given.asked) != set(TARGETS):
        return [f"asked has {sorted(given.asked)}, not {sorted(TARGETS)}"]
    found = []
    try:
        if any(value is not None for value in given.asked.values()):
            target = Target.of(**given.asked)
            if given.method in METHODS:
                METHODS[given.method].require(given.method, target)
    except InputError as error:
        found.append(f"asked has {dict(given.asked)}: {error}")
    known = METHODS[given.method].targets if given.method in METHODS else TARGETS
    if given.threshold is not None and "threshold" not in known:
        found.append(f"it states a threshold, but {given.method} has none")
    return found


def _type_faults(given: RankMap) -> list[str]:
    """Fields that do not have their type in the published schema."""
    kinds = _types()
    checks = [(n, getattr(given, n), kind) for n, kind in kinds.items() if n != "modules"]
    checks += [(module.name, module, Module) for module in given.modules]
    if isinstance(given.options, Mapping):
        factor = given.options.get("lrc_factor", LRC_FACTOR)
        checks.append(("lrc_factor", factor, PositiveShare))
    return [found for one in checks if (found := fault(*one)) is not None]


@functools.cache
def _types() -> dict[str, Any]:
    return get_type_hints(RankMap, include_extras=True)


def _module_faults(module: Module, given: RankMap, factor: float) -> list[str]:
    faults = []
    if module.full_rank != min(module.rows, module.cols):
        faults.append(f"a full rank of {module.full_rank} for {module.rows} x {module.cols}")
    if module.rank > module.full_rank:
        faults.append(f"rank {module.rank} is more than its full rank {module.full_rank}")
    if module.kind != kind_of(module.rank, module.full_rank, factor):
        faults.append(f"{module.kind} with rank {module.rank} of {module.full_rank}")
    dense = module.rows * module.cols
    factors = int(factored_parameters(module.rows, module.cols, module.rank, given.storage))
    expected = factors if module.factored else dense
    if module.params_dense != dense or module.params != expected:
        faults.append(
            f"{module.params} of {module.params_dense} parameters, not {expected} of {dense}"
        )
    return faults
