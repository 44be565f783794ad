"""The plan of a compression: ranks, and weightings of errors, before anything is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spectra.allocation.costs import require_storage
from spectra.allocation.rankmap import RankMap
from spectra.calibration.options import Calibration
from spectra.checkpoint.checkpoint import Checkpoint, Tensors
from spectra.checkpoint.places import PartTensors, Place
from spectra.compression.budget import allocate_by_loss, require_reachable
from spectra.compression.calibrated import calibrate
from spectra.compression.fit import require_fit
from spectra.compression.maps import stored_map
from spectra.compression.sequential import sequential_weightings
from spectra.compression.settings import Compression
from spectra.compression.skeleton import READS_WEIGHT, read_by_name, require_running
from spectra.compression.sources import model_tensors
from spectra.compression.weighting import UNREACHED, Weightings, plain_weightings
from spectra.machine.progress import Progress
from spectra.matrices import Matrix
from spectra.models.places import Places, places_of
from spectra.models.source import Source
from spectra.storages.registry import BUDGET_STORAGE
from spectra_data.errors import InputError

NEVER_REACHED = "calibration never reached it: more --windows may"
ALIGN = 16
"""Default multiple of ranks: with smaller ones, kernels waste part of their registers."""


@dataclass(frozen=True)
class Request:
    """Arguments of `compress`; see there.

    Raises
    ------
    InputError
        When they contradict each other.
    """

    source: Source
    rank_map: RankMap | None
    options: Compression
    check_weights: bool
    device: str

    def __post_init__(self) -> None:
        options = self.options
        if (self.rank_map is None) == (options.budget is None):
            raise InputError("name either a rank map or a budget")
        if options.budget is not None and not 0 < options.budget <= 1:
            raise InputError(f"a budget is a fraction of block parameters, not {options.budget:g}")
        if options.budget is not None and options.method == "sequential":
            raise InputError(
                "sequential needs a map: it weights errors by the outputs of compressed blocks"
            )
        if not options.settings.calibrated:
            _require_nothing_unused(options)
        if options.align is not None and self.rank_map is not None:
            raise InputError("align is for a budget: a map has its ranks already, leave it out")
        if options.align is not None and options.align < 1:
            raise InputError(f"ranks are multiples of 1 or more, not of {options.align}")
        if options.storage is not None:
            require_storage(options.storage)


def _require_nothing_unused(options: Compression) -> None:
    """Require that no option is given that a data-free method would ignore."""
    given = {
        "the options of calibration": options.calibration != Calibration(),
        "shrinkage": options.shrinkage is not None,
        "keep_scratch": options.keep_scratch,
    }
    for name, used in given.items():
        if used:
            raise InputError(f"svd is data-free: name another method, or leave {name} out")


@dataclass(frozen=True)
class Plan:
    """Plan of a compression."""

    opened: Checkpoint
    source: Tensors
    """Tensors by the names of the model's parameters."""
    config: Mapping[str, Any]
    rank_map: RankMap
    """Rank map of what will be stored."""
    weightings: Weightings
    about: Mapping[str, Any]
    """Method, calibration and hashes, for the result's metadata."""
    left_dense: Mapping[str, str]
    """Matrices that the map factors but that stay whole, with the reasons."""
    places: Mapping[str, Place]
    """Places of the matrices in layers that are taken apart, because some are factored."""
    packed: bool
    """Whether `source` has other tensors than `opened`, as for a GGUF file."""


@dataclass(frozen=True)
class Draft:
    """What is known of a compression before the first pass."""

    tensors: Tensors
    """Tensors by the names of the model's parameters."""
    config: Mapping[str, Any]
    places: Places
    fixed: Mapping[str, str]
    """Matrices that stay whole whatever their ranks are, with the reasons."""
    rank_map: RankMap | None
    """Rank map of what will be stored; None with a budget."""
    left_dense: Mapping[str, str]
    """See `Plan`."""

    def free(self, opened: Checkpoint) -> list[Matrix]:
        """The matrices that may be factored."""
        return [matrix for matrix in opened.matrices if matrix.name not in self.fixed]


def make_draft(request: Request) -> Draft:
    """Check a request as far as that is possible without its text.

    Raises
    ------
    InputError
        When the map does not fit, a budget cannot be reached, or nothing would be factored.
    """
    checkpoint, options = request.source, request.options
    opened = checkpoint.checkpoint
    tensors, config = model_tensors(checkpoint)
    places = places_of(checkpoint)
    fixed = dict(places.left)
    free = [matrix.name for matrix in opened.matrices if matrix.name not in fixed]
    fixed |= dict.fromkeys(read_by_name(checkpoint, free), READS_WEIGHT)
    if request.rank_map is None:
        assert options.budget is not None
        require_reachable(
            opened.matrices,
            options.budget,
            storage=options.storage or BUDGET_STORAGE,
            align=options.align or ALIGN,
            whole=frozenset(fixed),
        )
        return Draft(tensors, config, places, fixed, None, {})
    hashed = request.check_weights and checkpoint.is_gguf
    require_fit(request.rank_map, opened, weights=hashed)
    wanted, left = _stored(request.rank_map, options.storage, fixed)
    require_running(checkpoint, wanted)
    return Draft(tensors, config, places, fixed, wanted, left)


def make_plan(request: Request, progress: Progress) -> Plan:
    """Calibrate and allocate, as far as the request needs it.

    Raises
    ------
    InputError
        When the map does not fit, or nothing would be factored.
    """
    checkpoint, options, settings = request.source, request.options, request.options.settings
    opened, draft = checkpoint.checkpoint, make_draft(request)
    fixed, wanted, left = dict(draft.fixed), draft.rank_map, dict(draft.left_dense)
    about, weightings = settings.described(), plain_weightings()
    if settings.calibrated and settings.method != "sequential":
        weightings = calibrate(
            checkpoint,
            settings,
            request.device,
            progress,
            names=frozenset(matrix.name for matrix in draft.free(opened)),
            keep=options.keep_scratch,
        )
        about |= weightings.about
        if wanted is not None:
            _require_reached(weightings, wanted)
    if wanted is None:
        assert options.budget is not None
        fixed |= dict.fromkeys(sorted(weightings.unreached), NEVER_REACHED)
        rank_map = allocate_by_loss(
            opened,
            PartTensors(draft.tensors, draft.places.parts),
            weightings,
            options.budget,
            storage=options.storage or BUDGET_STORAGE,
            align=options.align or ALIGN,
            whole=frozenset(fixed),
            progress=progress,
        )
        wanted, left = _stored(rank_map, options.storage, fixed)
        left |= dict.fromkeys(sorted(weightings.unreached), NEVER_REACHED)
        require_running(checkpoint, wanted)
    if settings.method == "sequential":
        weightings = sequential_weightings(
            checkpoint,
            settings,
            wanted,
            request.device,
            progress,
            keep=options.keep_scratch,
        )
        about |= weightings.about
    factored = [module.name for module in wanted.modules if module.factored]
    return Plan(
        opened,
        draft.tensors,
        draft.config,
        wanted,
        weightings,
        about,
        left,
        draft.places.of_owners(factored),
        checkpoint.is_gguf,
    )


def _require_reached(weightings: Weightings, rank_map: RankMap) -> None:
    for module in rank_map.modules:
        if module.factored and module.name in weightings.unreached:
            raise InputError(f"{module.name}: {UNREACHED}")


def _stored(
    rank_map: RankMap, storage: str | None, fixed: Mapping[str, str]
) -> tuple[RankMap, dict[str, str]]:
    """The map of what will be stored, and the matrices of the map that stay whole, with reasons.

    Raises
    ------
    InputError
        When nothing would be factored.
    """
    left = {m.name: fixed[m.name] for m in rank_map.modules if m.name in fixed and m.factored}
    wanted = stored_map(rank_map, storage=storage, whole=left)
    if not any(module.factored for module in wanted.modules):
        reasons = "; ".join(dict.fromkeys(left.values())) or "the map leaves all of them whole"
        raise InputError(f"no matrix would be factored: {reasons}")
    return wanted, left
