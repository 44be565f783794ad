"""Checkpoints on a hub are read by ranges, with the code that the real one is read with."""

import json
import os
import re
import sys

import numpy as np
import pytest
import torch

import spectra
from spectra.checkpoint.checkpoint import open_checkpoint
from spectra.scanning.scan import run_scan
from spectra_data.errors import InputError
from tests.data.hub_server import hub
from tests.forked import Forked
from tests.spectra.checkpoints import as_torch_file, saved, sharded


def scanned(endpoint, home, name, store):
    """The scan of a name on a hub, as JSON, or why there is none."""
    os.environ |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    # the hub's address is fixed when its library is imported, which this process has inherited
    for module in [m for m in sys.modules if m.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[module]
    try:
        run_scan(name, store)
        run = spectra.open(store)
        found = {
            "steps": run["spectra"].step.values.tolist(),
            "values": run["spectra"].weight.fillna(0).values.tolist(),
            "checkpoints": run.attrs["checkpoints"],
        }
        print(json.dumps(found))
    except InputError as error:
        print(json.dumps(str(error)))


def scan(endpoint, home, name, store):
    process = Forked(scanned, endpoint, home, name, store)
    said, errors = process.stdout.read(), process.communicate()[1]
    assert process.returncode == 0, errors
    return json.loads(said)


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("form", ["safetensors", pytest.param("bin", marks=pytest.mark.slow)])
def test_a_hub_name_is_scanned_by_ranges_and_nothing_is_stored(tmp_path, form):
    folder = tmp_path / "local"
    if form == "bin":
        saved(folder)
        as_torch_file(folder)
    else:
        sharded(folder)
    with hub("org/small", files_of(folder), models=True) as (endpoint, requests):
        found = scan(endpoint, tmp_path / "home", "org/small", tmp_path / "hub.zarr")
    here = spectra.scan(folder, tmp_path / "here.zarr")["spectra"].weight
    np.testing.assert_array_equal(found["values"], here.fillna(0).to_numpy())
    weights = [r for r in requests if r.startswith("GET") and re.search(r"\.(safetensors|bin)", r)]
    assert all(" bytes=" in request for request in weights)
    lengths = [int(b) - int(a) + 1 for a, b in (re.search(r"bytes=(\d+)-(\d+)", r).groups()
               for r in weights)]  # fmt: skip
    largest = max(len(content) for content in files_of(folder).values())
    assert max(lengths) < largest / 2
    stored = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in stored) < 1000
    (entry,) = found["checkpoints"].values()
    assert re.fullmatch("[0-9a-f]{40}", entry["revision"])


def test_revisions_become_snapshots(tmp_path):
    revisions = {}
    for number, step in enumerate((1, 8, 512)):
        saved(tmp_path / f"step{step}", seed=number)
        revisions[f"step{step}"] = files_of(tmp_path / f"step{step}")
    with hub("org/series", {}, models=True, revisions=revisions) as (endpoint, _):
        name = "org/series@step8,step1"
        found = scan(endpoint, tmp_path / "home", name, tmp_path / "a.zarr")
        assert found["steps"] == [1, 8]
        more = scan(endpoint, tmp_path / "home", f"{name},step512", tmp_path / "a.zarr")
        assert more["steps"] == [1, 8, 512]  # the series goes on
        assert more["values"][:2] == found["values"]
        other = scan(endpoint, tmp_path / "home", "org/series@nope", tmp_path / "b.zarr")
        assert other == "org/series has no revision 'nope' on the hub"


def test_a_name_that_is_not_there_and_a_hub_that_is_not(tmp_path):
    with hub("org/small", {}, models=True) as (endpoint, _):
        said = scan(endpoint, tmp_path / "home", "org/other", tmp_path / "a.zarr")
        assert said == "no checkpoint at org/other: neither a path nor a name on the hub"
    said = scan("http://127.0.0.1:9", tmp_path / "home", "org/small", tmp_path / "a.zarr")
    assert said.startswith("org/small is not a local path, and the hub cannot be reached")


def test_a_file_behind_a_url_is_read_by_ranges(tmp_path):
    saved(tmp_path / "local")
    content = files_of(tmp_path / "local")
    with hub("org/small", content, models=True) as (endpoint, requests):
        checkpoint = open_checkpoint(f"{endpoint}/org/small/resolve/main/model.safetensors")
        first = next(iter(checkpoint.matrices))
        weight = checkpoint.read(first)
        assert not any(r.startswith("GET") and " bytes=" not in r for r in requests)
    here = open_checkpoint(tmp_path / "local")
    assert torch.equal(weight, here.read(first))
    assert len(checkpoint.matrices) == 14
