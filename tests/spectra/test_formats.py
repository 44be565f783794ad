"""Formats of weights: one that is registered is scanned like any other."""

import io

import numpy as np
import torch
from safetensors.torch import load_file

import spectra
from spectra.checkpoint.formats import FORMATS
from spectra.checkpoint.tensors import StoredTensor
from spectra.registry import Entry
from tests.spectra.checkpoints import saved


class NumpyFile:
    """numpy's archives."""

    def __init__(self, file):
        content = file.read(0, file.size).numpy().tobytes()
        arrays = np.load(io.BytesIO(content))
        self._arrays = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        self.tensors = {
            name: StoredTensor(name, tuple(value.shape), "F32", file.name)
            for name, value in self._arrays.items()
        }

    def read(self, name, first=None):
        value = self._arrays[name]
        return value if first is None else value[first]


def test_a_format_that_is_registered_is_scanned_like_any_other(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS.entries, ".npz", Entry("numpy's", f"{__name__}:NumpyFile"))
    saved(tmp_path / "m")
    scan = spectra.scan(str(tmp_path / "m"), tmp_path / "one.zarr")
    tensors = load_file(tmp_path / "m/model.safetensors")
    (tmp_path / "m/model.safetensors").unlink()
    np.savez(tmp_path / "m/weights.npz", **{k: v.numpy() for k, v in tensors.items()})
    again = spectra.scan(str(tmp_path / "m"), tmp_path / "other.zarr")
    for one, other in zip(scan["spectra"].weight, again["spectra"].weight, strict=True):
        np.testing.assert_array_equal(one, other)
    by_name = spectra.scan(str(tmp_path / "m/weights.npz"), tmp_path / "named.zarr")
    np.testing.assert_array_equal(by_name["spectra"].weight, scan["spectra"].weight)
