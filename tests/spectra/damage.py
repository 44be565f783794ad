"""Random damage to the files of a store, and what readers get of it."""

import contextlib
import hashlib
import json
import pickle
import shutil

import numpy as np
import xarray as xr

import spectra
from spectra.store.checksums import FOLDER
from spectra.store.evaluations import Evaluation, add_evaluation
from spectra.store.layout import Contents, Layout
from spectra.store.metadata import published
from spectra.store.places import is_of, owner
from spectra.store.writer import StoreWriter
from tests.spectra.crash_writer import CONTENTS, MATRICES, snapshot

KINDS = ("flip", "flip", "flip", "truncate", "zero", "delete", "swap")


def run_store(path):
    """A run with everything that can be recorded, a path and evaluations."""
    writer = StoreWriter.create(
        path, Layout(MATRICES, 5, 8, CONTENTS), {"kind": "run", "model": {"name": "a"}}
    )
    for step in range(1, 5):
        writer.write_snapshot(step, snapshot(step))
        new = (2 * step - 1, 2 * step)
        writer.write_train_rows([{"train_step": n, "learning_rate": 1.0, "loss": n} for n in new])
    writer.describe({"config": {"rate": 0.125, "words": "one two three"}})
    writer.close()
    return _with_groups(path)


def scan_store(path):
    """A scan of two checkpoints, written in pieces, with a path and evaluations."""
    layout = Layout(MATRICES, contents=Contents(("weight",), sketch=0, source=True))
    writer = StoreWriter.create(path, layout, {"kind": "scan"})
    for step in (1, 7):
        writer.describe({"begun": {"step": step}})
        writer.write_piece("spectra/weight", slice(0, 2), snapshot(step)["spectra/weight"])
        writer.write_piece("source/sha256", slice(0, 2), np.full((2, 32), step, np.uint8))
        writer.write_piece("status/code", slice(0, 2), np.zeros((2, 1), np.uint8))
        writer.describe({"checkpoints": {str(step): {"sha256": "a"}}})
        writer.announce(step)
    writer.close()
    return _with_groups(path)


def _with_groups(path):
    from spectra.allocation.path import write_path

    for perplexity in (9.0, 8.0, 7.0):
        add_evaluation(path, Evaluation(0.5, 0.75, perplexity, "welore", data="a text"))
    write_path(path, spacing=0.1)
    return path


def in_use(store):
    """The files of a store that say something of it, now or to who checks it."""
    nodes = published(json.loads((store / "zarr.json").read_text()))
    files = [file for file in sorted(store.rglob("*")) if file.is_file()]
    named = {file: str(file.relative_to(store)) for file in files}
    chunks = {
        file for file in files if not named[file].startswith(FOLDER) and owner(named[file])[1]
    }
    return [file for file in files if file not in chunks or is_of(named[file], nodes)]


@contextlib.contextmanager
def damaged(store, draw, kind=None):
    """Damage a file for the length of a block; says which, and how."""
    files = in_use(store)
    file = draw.choice(files)
    before = file.read_bytes()
    kind = kind or draw.choice(KINDS)
    after = _changed(before, kind, files, draw)
    if after is None:
        file.unlink()
    else:
        file.write_bytes(after)
    try:
        yield f"{kind} of {file.relative_to(store)}", after != before
    finally:
        file.write_bytes(before)


def _changed(before, kind, files, draw):
    if kind == "delete":
        return None
    if kind == "truncate":
        return before[: draw.randrange(len(before))]
    if kind == "zero":
        return bytes(len(before))
    if kind == "swap":
        return draw.choice(files).read_bytes()
    after = bytearray(before)
    after[draw.randrange(len(after))] ^= 1 << draw.randrange(8)
    return bytes(after)


def content(store):
    """Everything that readers get of a store, through xarray alone and through this package."""
    plain = xr.open_datatree(str(store), engine="zarr", chunks={})
    return {
        f"{how}:{path}/{name}": found
        for how, tree in (("xarray", plain), ("spectra", spectra.open(store)))
        for path, node in tree.subtree_with_keys
        for name, found in _of_node(node)
    }


def _of_node(node):
    dataset = node.to_dataset(inherit=False)
    yield "attributes", json.dumps(dataset.attrs, sort_keys=True, default=str)
    for name, variable in dataset.variables.items():
        values = np.asarray(variable.values)
        packed = pickle.dumps(values.tolist()) if values.dtype.kind in "OT" else values.tobytes()
        described = f"{values.dtype}{values.shape}{variable.dims}{variable.attrs}"
        yield name, (described, hashlib.sha256(packed).hexdigest())


def without_checksums(store):
    """The store as earlier versions left it."""
    shutil.rmtree(store / FOLDER)
    root = json.loads((store / "zarr.json").read_text())
    del root["attributes"]["checksums"]
    (store / "zarr.json").write_text(json.dumps(root))
    return store
