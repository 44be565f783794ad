"""Decompositions on disk: what calibration leaves of a model, from which any ranks are cut.

A folder of the cache belongs to one model, text and method, and is known by their hashes. It holds
for each matrix its spectrum and its decomposition over the shorter side, and each root once for all
matrices that share it. A block counts once its file of contents is there, which is written last.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectra.calibration.hidden import HiddenStates
from spectra.calibration.store import load_tensors, save_tensors
from spectra.compression.truncation import Root, ShortSide
from spectra.compression.weighting import Weighting
from spectra.eigen import folded, from_tensors, unfolded
from spectra.storages.stored import Factors
from spectra.store.durable import write_file
from spectra.store.lock import locked
from spectra_data.cache import cache_folder
from spectra_data.errors import InputError
from spectra_data.integrity import sealed, unsealed
from spectra_data.partial import remove_leftovers

FORMAT = 3
KEPT_BYTES = 8e9
"""Size in bytes above which a folder is removed after use, unless it is to be kept."""
KINDS = ("matrix", "spectrum", "product", "pruned")
"""What there is of a matrix: its decomposition and spectrum, a product, or a pruned weight."""


class Scratch:
    """The decompositions of one model by one method on one text.

    Parameters
    ----------
    described
        Checkpoint, tokens and settings: everything that the decompositions depend on.
    """

    def __init__(self, described: Mapping[str, Any]) -> None:
        text = json.dumps({"format": FORMAT, **described}, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.path = cache_folder("calibration", self.key)
        self.states = HiddenStates(self.path)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make and hold the folder for a pass, without what a killed process did not finish.

        Raises
        ------
        InputError
            When another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        with locked(self.path):
            yield

    def save_root(self, key: str, root: Root) -> None:
        """Write a root, which several matrices may share."""
        whole = root.root.cpu()
        packed = {"diagonal": whole}
        if whole.ndim == 2:
            packed = {"folded": torch.from_numpy(folded(whole.numpy(), np.float64))}
        save_tensors(self._file("root", key), packed, {})

    def save(self, name: str, side: ShortSide, root: str | None) -> None:
        """Write the decomposition of a matrix, and the key of its root."""
        about = {"of_outputs": str(side.of_outputs), "root": root or ""}
        save_tensors(self._file("matrix", name), side.eigen.tensors, about)
        save_tensors(self._file("spectrum", name), {"spectrum": side.spectrum}, {})

    def save_factors(self, name: str, factors: Factors) -> None:
        """Write the factors of a matrix, in float32."""
        tensors = {"left": factors.left.float(), "right": factors.right.float()}
        save_tensors(self._file("product", name), tensors, {})

    def save_pruned(self, name: str, weight: torch.Tensor) -> None:
        """Write the pruned weight of a matrix."""
        save_tensors(self._file("pruned", name), {"weight": weight}, {})

    def finish(self, block: str, reached: Iterable[str], *, roots: Iterable[str] = ()) -> None:
        """State that a block is complete: the matrices that calibration reached, and the roots."""
        names = sorted(reached)
        paths = [self._file(kind, name) for kind in KINDS for name in names]
        files = [path.name for path in paths if path.exists()]
        files += [self._file("root", key).name for key in sorted(roots)]
        write_file(self._contents(block), sealed({"reached": names, "files": files}))

    def reached(self, block: str) -> frozenset[str] | None:
        """The matrices of a block that calibration reached; None if the block is not complete."""
        try:
            contents = unsealed(self._contents(block).read_bytes())
            names, files = frozenset(contents["reached"]), contents["files"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return names if all((self.path / file).exists() for file in files) else None

    def spectrum(self, name: str) -> torch.Tensor:
        """The weighted spectrum of a matrix.

        Raises
        ------
        InputError
            When it is missing or damaged, as are the others below.
        """
        return self._load("spectrum", name)[0]["spectrum"]

    def short_side(self, name: str) -> ShortSide:
        """The decomposition of a matrix."""
        tensors, about = self._load("matrix", name)
        root = about["root"]
        return ShortSide(
            about["of_outputs"] == str(True),
            self._root(root) if root else None,
            from_tensors(tensors),
        )

    def factors(self, name: str) -> Factors:
        """The factors of a matrix."""
        tensors = self._load("product", name)[0]
        return Factors(tensors["left"], tensors["right"])

    def pruned(self, name: str) -> torch.Tensor:
        """The pruned weight of a matrix."""
        return self._load("pruned", name)[0]["weight"]

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.path.glob("*.safetensors"))

    def tidy(self) -> None:
        """Remove the folder if it is large."""
        if self.bytes > KEPT_BYTES:
            self.remove()

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _root(self, key: str) -> Root:
        (kind, packed), *_ = self._load("root", key)[0].items()
        if kind == "diagonal":
            return Root(packed)
        return Root(torch.from_numpy(unfolded(packed.numpy(), packed.shape[1] - 1)))

    def _load(self, kind: str, name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        path = self._file(kind, name)
        found = load_tensors(path)
        if found is None:
            raise InputError(f"{path} was lost: repeat the command")
        return found

    def _file(self, kind: str, name: str) -> Path:
        return self.path / f"{name}.{kind}.safetensors"

    def _contents(self, block: str) -> Path:
        return self.path / f"{block}.json"


@dataclass(frozen=True)
class FromScratch(Weighting):
    """The weighting of a matrix whose decomposition is on disk."""

    scratch: Scratch
    name: str

    def spectrum(self, read: Any) -> torch.Tensor:
        """See `Weighting`."""
        return self.scratch.spectrum(self.name)

    def truncated(self, weight: torch.Tensor, rank: int) -> Factors:
        """See `Weighting`."""
        return self.scratch.short_side(self.name).truncated(weight, rank)
