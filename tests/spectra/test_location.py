"""Stores elsewhere: whatever fsspec writes to."""

import os
import re
import subprocess
import sys

import fsspec
import numpy as np
import pytest
import torch
from moto.server import ThreadedMotoServer
from zarr.storage import FsspecStore

import spectra
from spectra.cli import main
from spectra.store.layout import Layout
from spectra.store.writer import StoreWriter
from spectra_data.errors import InputError
from tests.small import random_batch, small_llama, train
from tests.spectra.crash_writer import CONTENTS, MATRICES, snapshot


@pytest.fixture(scope="module")
def s3():
    """An S3 server of this process with a bucket, and the environment that leads to it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = dict(os.environ)
    os.environ.update(environment)
    fsspec.filesystem("s3").mkdir("bucket")
    yield "s3://bucket"
    os.environ.clear()
    os.environ.update(before)
    server.stop()


@pytest.fixture(params=["memory", "s3", pytest.param("file", marks=pytest.mark.slow)])
def folder(request, tmp_path):
    if request.param == "s3":
        return request.getfixturevalue("s3") + f"/{tmp_path.name}"
    return f"memory://{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}"


OPTIONS = {"probe": random_batch(0), "every": 4, "sketch": 64, "gradients": True, "subspaces": 2}


LIGHT = OPTIONS | {"gradients": False, "subspaces": 0}
"""For places where each of some two hundred objects takes its time."""


def recorded(store, steps=7, model=None, optimizer=None, first=0, **options):
    model = model or small_llama()
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    with spectra.record(model, optimizer, store, **OPTIONS | options) as recorder:
        train(model, optimizer, steps, first=first, recorder=recorder)
    assert recorder.stopped is None
    return model, optimizer


def same(one, other):
    for path in one.groups:
        for name, array in one[path].to_dataset().data_vars.items():
            if name != "tokens_per_second":
                np.testing.assert_array_equal(array, other[path][name], err_msg=f"{path}/{name}")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """What a folder holds of seven steps."""
    store = tmp_path_factory.mktemp("local") / "a.zarr"
    recorded(store)
    return spectra.open(store)


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """As `local`, of `LIGHT`."""
    store = tmp_path_factory.mktemp("light") / "a.zarr"
    recorded(store, **LIGHT)
    return spectra.open(store)


def test_a_store_elsewhere_is_the_one_that_a_folder_would_hold(local, light, folder):
    options, expected = (LIGHT, light) if folder.startswith("s3:") else (OPTIONS, local)
    store = f"{folder}/a.zarr"
    recorded(store, **options)
    same(expected, spectra.open(store))
    assert spectra.verify(store).whole


def test_a_recording_elsewhere_is_resumed(folder, light):
    store = f"{folder}/b.zarr"
    model, optimizer = recorded(store, steps=4, **LIGHT)
    saved = {k: v.clone() for k, v in model.state_dict().items()}, optimizer.state_dict()
    with pytest.raises(InputError, match="exists already"):
        recorded(store)
    again = small_llama(seed=1)
    again.load_state_dict(saved[0])
    fresh = torch.optim.AdamW(again.parameters(), lr=1e-2)
    fresh.load_state_dict(saved[1])
    recorded(store, 3, again, fresh, first=4, start_step=4, resume=True, **LIGHT)
    same(light, spectra.open(store))


def test_the_background_process_writes_elsewhere(s3, light, tmp_path):
    store = f"{s3}/{tmp_path.name}/c.zarr"
    recorded(store, **LIGHT, background="wait")
    same(light, spectra.open(store))


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("allowed", range(0, 18, 2))
def test_writing_elsewhere_stopped_anywhere_shows_no_half_snapshot(tmp_path, monkeypatch, allowed):
    store = f"memory://{tmp_path.name}/d.zarr"
    writer = StoreWriter.create(store, Layout(MATRICES, 4, 4, CONTENTS), {})
    writer.write_snapshot(1, snapshot(1))
    original, calls = FsspecStore.set, iter(range(1000))

    async def stopping(self, key, value):
        if next(calls) >= allowed:
            raise StoppedError
        await original(self, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(FsspecStore, "set", stopping)
        try:
            writer.write_snapshot(2, snapshot(2))
            committed = 2
        except StoppedError:
            committed = 1
    assert spectra.open(store)["spectra"].sizes["step"] == committed
    assert spectra.verify(store).whole
    assert committed == (1 if allowed < 15 else 2)


def test_a_half_made_store_elsewhere_is_none_and_can_be_made(tmp_path, monkeypatch):
    store = f"memory://{tmp_path.name}/e.zarr"
    original = FsspecStore.set

    async def stopping(self, key, value):
        if key == "zarr.json":
            raise StoppedError
        await original(self, key, value)

    layout = Layout(MATRICES, 4, 4, CONTENTS)
    with monkeypatch.context() as patch:
        patch.setattr(FsspecStore, "set", stopping)
        with pytest.raises(StoppedError):
            StoreWriter.create(store, layout, {})
    with pytest.raises(InputError, match="no store at memory://"):
        spectra.open(store)
    StoreWriter.create(store, layout, {}).write_snapshot(1, snapshot(1))
    assert spectra.verify(store).snapshots == 1


def test_commands_take_addresses(s3, tmp_path, capsys):
    store = f"memory://{tmp_path.name}/f.zarr"
    recorded(store, 1, **LIGHT)
    assert main(["verify", store]) == 0
    assert "whole" in capsys.readouterr().out
    assert main(["report", store, "--out", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").stat().st_size > 100_000
    assert main(["verify", f"{s3}/nothing.zarr"]) == 2
    assert "no store at s3://bucket/nothing.zarr" in capsys.readouterr().err


def test_addresses_that_lead_nowhere_are_one_line(s3, capsys):
    assert main(["verify", "nonsense://x/y.zarr"]) == 2
    assert re.search(r"nonsense://x/y\.zarr is not the address of a store", capsys.readouterr().err)
    model = small_llama()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.warns(RuntimeWarning, match="did not begin: s3://nobucket/.* cannot be written"):
        spectra.record(model, optimizer, "s3://nobucket/a.zarr", probe=None).close()


def test_a_missing_package_says_what_installs_it(tmp_path):
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from spectra.cli import main; sys.exit(main(['verify', 's3://bucket/a.zarr']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "pip install 'spectra-dynamics[s3]'" in result.stderr
    assert "Traceback" not in result.stderr
