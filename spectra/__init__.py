"""See how language models become low-rank while they are trained.

>>> import spectra
>>> recorder = spectra.record(
...     model, optimizer, "runs/a.zarr", probe=batch, every=500
... )  # doctest: +SKIP
>>> run = spectra.open("runs/a.zarr")  # doctest: +SKIP
>>> cosine = spectra.cosine_similarity(run)  # doctest: +SKIP

Names are imported on first use, so that reading a store does not wait for torch. After this import,
transformers' ``from_pretrained`` loads checkpoints that `spectra compress` wrote.
"""

import contextlib
import warnings
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from spectra.registration import register_when_imported

if TYPE_CHECKING:
    from spectra.allocation.allocate import allocate as allocate
    from spectra.allocation.rankmap import RankMap as RankMap
    from spectra.analysis.dynamics import gradient_dynamics as gradient_dynamics
    from spectra.analysis.emergence import emergence as emergence
    from spectra.analysis.similarity import cosine_similarity as cosine_similarity
    from spectra.analysis.subspaces import subspace_overlap as subspace_overlap
    from spectra.analysis.table import metrics_table as metrics_table
    from spectra.analysis.tails import heavy_tail as heavy_tail
    from spectra.compression.compress import compress as compress
    from spectra.compression.merge import merge as merge
    from spectra.linalg import singular_values as singular_values
    from spectra.matrices import Matrix as Matrix
    from spectra.matrices import find_matrices as find_matrices
    from spectra.pruning.prune import prune as prune
    from spectra.recording.recorder import Recorder as Recorder
    from spectra.recording.start import record as record
    from spectra.recording.trainer import TrainerCallback as TrainerCallback
    from spectra.report.page import write_report as write_report
    from spectra.scanning.scan import scan as scan
    from spectra.store.reader import open_store
    from spectra.store.verify import verify as verify
    from spectra_data.errors import InputError as InputError

    open = open_store

try:
    __version__ = version("spectra-dynamics")
except PackageNotFoundError:  # used from a folder, not installed
    __version__ = "0"
with contextlib.suppress(PackageNotFoundError):
    version("spectra")
    warnings.warn(
        "the package `spectra`, a colour library, installs into the same folder as "
        "spectra-dynamics: run `pip uninstall spectra`, then "
        "`pip install --force-reinstall --no-deps spectra-dynamics`",
        stacklevel=2,
    )

_HOMES = {
    "InputError": "spectra_data.errors",
    "RankMap": "spectra.allocation.rankmap",
    "allocate": "spectra.allocation.allocate",
    "Matrix": "spectra.matrices",
    "Recorder": "spectra.recording.recorder",
    "TrainerCallback": "spectra.recording.trainer",
    "compress": "spectra.compression.compress",
    "cosine_similarity": "spectra.analysis.similarity",
    "emergence": "spectra.analysis.emergence",
    "find_matrices": "spectra.matrices",
    "gradient_dynamics": "spectra.analysis.dynamics",
    "heavy_tail": "spectra.analysis.tails",
    "merge": "spectra.compression.merge",
    "metrics_table": "spectra.analysis.table",
    "open": "spectra.store.reader:open_store",
    "prune": "spectra.pruning.prune",
    "record": "spectra.recording.start",
    "scan": "spectra.scanning.scan",
    "singular_values": "spectra.linalg",
    "subspace_overlap": "spectra.analysis.subspaces",
    "verify": "spectra.store.verify",
    "write_report": "spectra.report.page",
}
__all__ = sorted(_HOMES)


# not lazy_loader, which supports neither names of another package nor renaming


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


register_when_imported()
