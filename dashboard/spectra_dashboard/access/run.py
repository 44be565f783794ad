"""One store: its contents, read in parts on request and cached."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import dask.array  # noqa: F401  (else the first request's threads import it half)
import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr

from spectra.allocation.allocate import Maker
from spectra.allocation.candidates import Candidates, candidates_of
from spectra.allocation.methods.registry import METHODS
from spectra.allocation.options import PATH_SPACING, AllocationSettings
from spectra.allocation.path import GROUP as PATH
from spectra.allocation.path import compression_path
from spectra.allocation.rankmap import RankMap
from spectra.allocation.target import Target
from spectra.matrices import Matrix, block_labels
from spectra.quantities import QUANTITIES
from spectra.store.evaluations import Evaluation, evaluations
from spectra.store.files import RegularFiles, leads_out
from spectra.store.reader import open_store
from spectra.store.schema import SCHEMA, UNSET
from spectra_dashboard.access.memory import Memory
from spectra_data.errors import InputError, printable
from spectra_data.reading import read_json

T = TypeVar("T")
Signature = tuple[tuple[str, int, int], ...]

METADATA_BYTES = 64 << 20
MOST_MATRICES = 50_000
MOST_NUMBERS = 1 << 28
"""Most numbers in a snapshot of one kind; a store that claims more counts as broken."""
MOST_STEPS = 10_000_000
MOST_CHUNKS = 20_000
"""Most chunks of an array that is read whole: each is a file."""
COARSE = 0.05
"""Spacing of targets that each need a search of about a second."""


@dataclass(frozen=True)
class Pairs:
    """A measure of all pairs of snapshots of one matrix."""

    values: npt.NDArray[np.float32]
    """(step, step)."""
    standard_error: float | None = None
    """Standard error of an approximate cosine."""
    chance: float = 0.0
    """Overlap of unrelated subspaces, for an overlap."""


def from_here(path: Path, name: str) -> str:
    """A file in a command that is typed where the dashboard was started.

    Its name in the dashboard's folder if that is elsewhere: paths of this machine are not shown.
    """
    path = path.absolute()
    return printable(os.path.relpath(path)) if path.is_relative_to(Path.cwd()) else name


class Run:
    """A store below the dashboard's folder.

    Every method raises InputError if the store cannot be read, with its name instead of its path.
    """

    def __init__(
        self, name: str, path: Path, memory: Memory, *, within: Path | None = None
    ) -> None:
        self.name = name
        self.path = path
        self.within = path if within is None else within
        """Folder that no link in the store may lead out of."""
        self._memory = memory

    @property
    def label(self) -> str:
        """A short name to show."""
        parts = self.name.removesuffix(".zarr").split("/")
        return (
            "/".join(parts[:-1]) if len(parts) > 1 and parts[-1] == "spectra" else "/".join(parts)
        )

    @property
    def address(self) -> str:
        """The store in a command that is typed where the dashboard was started."""
        return from_here(self.path, self.name)

    def attributes(self) -> dict[str, Any]:
        """Attributes of the store."""
        return self._kept("attributes", self.signature("zarr.json"), self._attributes)

    def signature(self, *paths: str) -> Signature:
        """A value that changes when files at these paths below the store change."""
        return tuple(sorted(found for path in paths for found in _stamps(self.path / path)))

    def steps(self) -> npt.NDArray[np.int64]:
        """(step,) steps of the committed snapshots."""
        return self._kept("steps", self._stamp(), lambda: self._committed("spectra/step"))

    def tree(self) -> xr.DataTree:
        """The store as `spectra.open` returns it, with its current snapshots."""
        return self._kept("tree", self._stamp(), self._open)

    def matrices(self) -> list[Matrix]:
        """Matrices, in the store's order."""
        return self._kept("matrices", self.signature("zarr.json"), self._matrices)

    def labels(self) -> dict[str, int | str]:
        """Label of each matrix's block, by the matrix's name."""
        names = [matrix.name for matrix in self.matrices()]
        return dict(zip(names, block_labels(names), strict=True))

    def kinds(self) -> list[str]:
        """Kinds of spectra recorded."""
        return [kind for kind in QUANTITIES if self._has(f"spectra/{kind}")]

    def has(self, group: str) -> bool:
        """Whether a group was recorded."""
        return self._has(group)

    def train(self, *names: str) -> dict[str, npt.NDArray[Any]]:
        """(train_step,) arrays of the committed training steps, and `train_step`."""
        stamp = self.signature("zarr.json", "train/train_step/c")
        return self._kept(("train", names), stamp, lambda: self._train(names))

    def spectrum_rows(
        self, kind: str, matrix: str, rows: slice, values: int | None = None
    ) -> npt.NDArray[np.float32]:
        """(row, index) leading singular values of one matrix at some snapshots; all by default."""
        index = self._index(matrix)
        self._require(kind)
        with self._reading():
            array = self._array(f"spectra/{kind}")
            return np.asarray(array[rows, index, :values], np.float32)

    def spectrum(self, kind: str, matrix: str, step: int) -> npt.NDArray[np.float64]:
        """(index,) all singular values of one matrix at one step."""
        row, index = self.row(step), self._index(matrix)
        self._require(kind)
        with self._reading():
            values = np.asarray(self._array(f"spectra/{kind}")[row, index], np.float64)
        return values[np.isfinite(values)]

    def row(self, step: int | None) -> int:
        """Row of the snapshot at a step, or of the last snapshot for None."""
        return self._snapshot(step)[0]

    def step(self, step: int | None) -> int:
        """Step of a snapshot; the step of the last snapshot for None."""
        return self._snapshot(step)[1]

    def _snapshot(self, step: int | None) -> tuple[int, int]:
        steps = self.steps()
        if not len(steps):
            raise InputError(f"{self.name} has no snapshot yet: the first is taken at the start")
        if step is None:
            return len(steps) - 1, int(steps[-1])
        if step not in steps:
            raise InputError(f"{self.name} has no snapshot at step {step}")
        return int(np.flatnonzero(steps == step)[0]), step

    def _require(self, kind: str) -> None:
        if kind not in self.kinds():
            raise InputError(f"{self.name} holds no spectra of the {kind}")

    def pairs(self, what: str, matrix: str) -> Pairs:
        """Cosines (``exact``, ``sketch``) or ``overlap`` of all pairs of snapshots of a matrix."""
        key = ("pairs", what, matrix)
        return Pairs(*self._kept(key, self._stamp(), lambda: self._pairs(what, matrix)))

    def measures(self, step: int) -> xr.Dataset:
        """(matrix, kind) every measure at one snapshot."""
        # the files of this step: a run resumed from an earlier step writes them again
        rows = [f"spectra/{kind}/c/{self.row(step)}" for kind in self.kinds()]
        return self._kept(("measures", step), self.signature(*rows), lambda: self._measures(step))

    def candidates(self, step: int | None = None) -> Candidates:
        """The matrices of a snapshot, for allocation."""
        at = self.step(step)
        return self._kept(("candidates", at), self._stamp(), lambda: candidates_of(self.tree(), at))

    def path_of(
        self, method: str, target: str, storage: str, step: int | None = None
    ) -> xr.Dataset:
        """Ranks and costs of a method at every target; read from the store if they are there."""
        at = self.step(step)
        key = ("path", method, target, storage, at)
        stamp = (*self._stamp(), *self.signature(PATH))
        return self._kept(key, stamp, lambda: self._path(method, target, storage, at))

    def rank_map(self, method: str, target: Target, storage: str, step: int | None) -> RankMap:
        """The map that `spectra allocate` makes with these options."""
        with self._reading():
            settings = AllocationSettings(method=method, storage=storage)
            return Maker(self.candidates(step), settings).map(target)

    def evaluations(self) -> list[Evaluation]:
        """Evaluations of compressed checkpoints."""
        stamp = self.signature("zarr.json", "evaluations/perplexity")
        return self._kept("evaluations", stamp, lambda: evaluations(self._opened()))

    def _kept(self, what: Any, stamp: Any, make: Callable[[], T]) -> T:
        def read() -> T:
            with self._reading():
                return make()

        return self._memory.get((self.name, what), stamp, read)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn any error of a broken store into one line without the path."""
        try:
            yield
        except InputError as error:
            raise InputError(self.without_path(str(error))) from error
        except MemoryError as error:
            raise InputError(f"{self.name} does not fit into memory") from error
        except Exception as error:  # codecs raise errors of any type
            reason = self.without_path(f"{type(error).__name__}: {error}")[:300]
            raise InputError(
                f"{self.name} cannot be read ({reason}): spectra verify says what is wrong with it"
            ) from error

    def without_path(self, text: str) -> str:
        """A message with the store's name instead of its path."""
        for path in (self.path, self.path.resolve()):
            text = text.replace(str(path), self.name)
        return text.replace(str(self.within), "the folder")

    def _stamp(self) -> Signature:
        return self.signature("zarr.json", "spectra/step/c")

    def _attributes(self) -> dict[str, Any]:
        file = self.path / "zarr.json"
        if leads_out(file, self.within):
            raise InputError(f"{self.name} has a link that leads out of the folder")
        if file.stat().st_size > METADATA_BYTES:
            raise InputError(f"{self.name} has {file.stat().st_size >> 20} MB of metadata")
        described = read_json(file)
        attributes = described.get("attributes") if isinstance(described, dict) else None
        if not isinstance(attributes, dict):
            raise InputError(f"{self.name} is not a store: its attributes are not a mapping")
        if (schema := attributes.get("schema")) != SCHEMA:
            raise InputError(f"{self.name} has the schema {schema!r}; this version reads {SCHEMA}")
        return attributes

    def _group(self) -> zarr.Group:
        def opened() -> zarr.Group:
            self._attributes()
            files = RegularFiles(self.path, read_only=True, within=self.within)
            return zarr.open_group(files, mode="r")

        return self._kept("group", self.signature("zarr.json"), opened)

    def _array(self, path: str) -> Any:
        array: Any = self._group()[path]
        per_row = int(np.prod(array.shape[1:], dtype=float))
        if array.shape[0] > MOST_STEPS or per_row > MOST_NUMBERS:
            raise InputError(f"{path} of {self.name} says it has the shape {array.shape}")
        return array

    def _whole(self, path: str) -> npt.NDArray[Any]:
        array = self._array(path)
        if array.nchunks > MOST_CHUNKS:
            raise InputError(f"{path} of {self.name} is cut into {array.nchunks} chunks")
        return np.asarray(array[:])

    def _has(self, path: str) -> bool:
        with self._reading():
            return path in self._group()

    def _committed(self, path: str) -> npt.NDArray[np.int64]:
        steps = self._whole(path).astype(np.int64)
        committed: npt.NDArray[np.int64] = steps[steps != UNSET]
        if (steps[: len(committed)] == UNSET).any() or (np.diff(committed) <= 0).any():
            raise InputError(
                f"{path} of {self.name} has gaps or is not ascending: spectra verify says more"
            )
        return committed

    def _matrices(self) -> list[Matrix]:
        names = self._array("spectra/matrix")
        if names.shape[0] > MOST_MATRICES:
            raise InputError(f"{self.name} says it has {names.shape[0]} matrices")
        fields = ("matrix", "layer", "role", "rows", "cols")
        columns = [self._whole(f"spectra/{name}").tolist() for name in fields]
        if not columns[0] or len(set(columns[0])) < len(columns[0]):
            raise InputError(f"{self.name} holds no matrices, or two of one name")
        return [Matrix(*of_one) for of_one in zip(*columns, strict=True)]

    def _index(self, matrix: str) -> int:
        for index, found in enumerate(self.matrices()):
            if found.name == matrix:
                return index
        raise InputError(f"{self.name} has no matrix called {matrix!r}")

    def _open(self) -> xr.DataTree:
        self.matrices()
        for kind in self.kinds():
            self._array(f"spectra/{kind}")
        return self._opened()

    def _opened(self) -> xr.DataTree:
        return open_store(self.path, within=self.within)

    def _train(self, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
        # the steps are written last, so the other arrays hold at least as many rows
        steps = self._whole("train/train_step").astype(np.int64)
        rows = np.flatnonzero(steps != UNSET)
        found = {name: self._whole(f"train/{name}")[rows] for name in names}
        return {"train_step": steps[rows], **found}

    def _pairs(self, what: str, matrix: str) -> tuple[Any, ...]:
        tree = self._of_one(matrix)
        if what == "overlap":
            from spectra.analysis.subspaces import subspace_overlap

            overlap = subspace_overlap(tree).compute()
            values = overlap["overlap"].to_numpy()[0].astype(np.float32)
            return values, None, float(overlap["chance"][0])
        from spectra.analysis.similarity import cosine_similarity

        method: Any = what
        cosine = cosine_similarity(tree, method=method).compute().transpose("matrix", ...)
        values = cosine.to_numpy()[0].astype(np.float32)
        return values, cosine.attrs.get("standard_error"), 0.0

    def _of_one(self, matrix: str) -> xr.DataTree:
        """The tree with one matrix; one of the groups of raw gradients, by shape, has it."""
        groups = {}
        for name, node in self.tree().subtree_with_keys:
            dataset = node.to_dataset(inherit=False)
            if "matrix" in dataset.dims:
                index = np.flatnonzero(dataset["matrix"].to_numpy() == matrix)
                if not len(index):
                    continue
                dataset = dataset.isel(matrix=index)
            groups[name] = dataset
        tree = xr.DataTree.from_dict(groups)
        tree.encoding = dict(self.tree().encoding)
        return tree

    def _measures(self, step: int) -> xr.Dataset:
        from spectra.analysis.table import metrics_table

        of_one = self.tree().isel(step=[self.row(step)], missing_dims="ignore")
        return metrics_table(of_one).isel(step=0)

    def _path(self, method: str, target: str, storage: str, step: int) -> xr.Dataset:
        tree = self.tree()
        wanted = {"method": method, "target": target, "storage": storage, "step": step}
        if PATH in tree.children and wanted.items() <= tree[PATH].attrs.items():
            return tree[PATH].to_dataset().compute()
        spacing = spacing_of(method, target)
        return compression_path(
            self.candidates(step), method=method, target=target, storage=storage, spacing=spacing
        )


def spacing_of(method: str, target: str) -> float:
    """Spacing of the targets at which a method's ranks are computed for sliders and curves."""
    return COARSE if target in METHODS[method].searched else PATH_SPACING


def _stamps(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, time and size of a file, or of all files below a folder."""
    if path.is_file():
        found: Iterator[Path] = iter([path])
    else:
        found = (Path(root) / name for root, _, names in os.walk(path) for name in names)
    for file in found:
        with contextlib.suppress(OSError):
            status = file.stat()
            yield str(file.relative_to(path.parent)), status.st_mtime_ns, status.st_size
