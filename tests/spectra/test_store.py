"""The store: readable by anyone, whole after a kill, and honest when it is not."""

import contextlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import zarr

import spectra
from spectra.matrices import Matrix
from spectra.store.layout import Contents, Layout
from spectra.store.schedule import Schedule
from spectra.store.verify import verify
from spectra.store.writer import StoreWriter
from spectra_data.errors import InputError
from tests.spectra.interruption import StoppedError, stopped_after

MATRICES = (Matrix("model.layers.0.a", 0, "a", 4, 6), Matrix("model.layers.1.a", 1, "a", 3, 9))
LAYOUT = Layout(MATRICES, snapshots=4, train_steps=10, contents=Contents(sketch=8))

PLAIN_READER = """
import sys, warnings
warnings.simplefilter("error")
import xarray as xr
tree = xr.open_datatree(sys.argv[1], engine="zarr")
one = xr.open_zarr(sys.argv[1], group="spectra")
assert not any(name.split(".")[0] in ("spectra", "torch", "data") for name in sys.modules)
weight = tree["spectra"].weight
assert weight.dims == ("step", "matrix", "index"), weight.dims
assert tree["spectra"].step.values.tolist() == [0, 3, 6, 7]
assert one.weight.sel(step=7, matrix="model.layers.1.mlp.up_proj").notnull().sum() == 32
assert one.role.values[:2].tolist() == ["q", "k"] and "role" in one.coords
assert tree["train"].train_step.values.tolist() == [1, 2, 3, 4, 5, 6, 7]
assert tree.attrs["schema"] == "spectra/1" and tree.attrs["kind"] == "run"
print("read")
"""


def snapshot(value=1.0):
    arrays = {}
    for name in ("weight", "gradient", "update"):
        array = np.full((2, 4), np.nan, np.float32)
        array[0], array[1, :3] = value, value
        arrays[f"spectra/{name}"] = array
    arrays["sketches/gradient"] = np.full((2, 8), value, np.float32)
    arrays["status/code"] = np.zeros((2, 4), np.uint8)
    return arrays


def written(path, steps=(0, 5)):
    writer = StoreWriter.create(path, LAYOUT, {"kind": "run"})
    for step in steps:
        writer.write_snapshot(step, snapshot())
    writer.write_train_rows(
        [{"train_step": n, "learning_rate": 1.0, "loss": 1.0 / n} for n in range(1, 6)]
    )
    return writer


def test_plain_xarray_reads_a_store_without_this_package_and_without_a_warning(store, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", PLAIN_READER, str(store)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "read\n", result.stderr


def test_names_are_stored_as_variable_length_strings(store):
    described = json.loads((store / "spectra/matrix/zarr.json").read_text())
    assert described["data_type"] == "string"
    consolidated = json.loads((store / "zarr.json").read_text())["consolidated_metadata"]
    assert "spectra/weight" in consolidated["metadata"]


def test_opening_shows_committed_rows_only(tmp_path):
    written(tmp_path / "a.zarr")
    run = spectra.open(tmp_path / "a.zarr")
    assert run["spectra"].step.values.tolist() == [0, 5]
    assert run["spectra"].sizes == {"step": 2, "matrix": 2, "index": 4}
    assert run["sketches"].sizes["step"] == 2
    assert run["train"].train_step.values.tolist() == [1, 2, 3, 4, 5]
    assert run["spectra"].weight.chunks is not None  # lazy
    assert run["spectra"].rows.values.tolist() == [4, 3]


def test_a_row_exists_only_once_its_step_is_written(tmp_path, monkeypatch):
    """Stop the writer before each of its writes in turn: no reader ever sees the half row."""
    path = tmp_path / "a.zarr"
    original = StoreWriter._array
    for allowed in range(6):
        shutil.rmtree(path, ignore_errors=True)
        writer = written(path, steps=(0,))
        calls = iter(range(1000))

        def stopping(self, name, calls=calls, allowed=allowed):
            if next(calls) > allowed:
                raise InterruptedError
            return original(self, name)

        with monkeypatch.context() as patch:
            patch.setattr(StoreWriter, "_array", stopping)
            with pytest.raises(InterruptedError):
                writer.write_snapshot(5, snapshot(2.0))
        assert spectra.open(path)["spectra"].step.values.tolist() == [0]
        assert verify(path).whole
        writer = StoreWriter.resume(path, LAYOUT, {}, step=0)
        writer.write_snapshot(5, {"spectra/weight": snapshot(3.0)["spectra/weight"]})
        run = spectra.open(path)
        assert run["spectra"].weight.isel(step=1).max() == 3
        # of the half row that was there before, nothing shows through
        assert run["spectra"].gradient.isel(step=1).isnull().all()


def test_resuming_unsets_later_rows(tmp_path):
    path = tmp_path / "a.zarr"
    written(path, steps=(0, 5, 10))
    writer = StoreWriter.resume(path, LAYOUT, {"kind": "run"}, step=7)
    assert writer.steps == [0, 5]
    assert spectra.open(path)["train"].sizes["train_step"] == 5
    StoreWriter.resume(path, LAYOUT, {}, step=3)
    run = spectra.open(path)
    assert run["spectra"].step.values.tolist() == [0]
    assert run["train"].train_step.values.tolist() == [1, 2, 3]


@pytest.mark.parametrize("allowed", [0, 1, 20])
def test_an_interrupted_creation_leaves_no_store(tmp_path, allowed):
    path = tmp_path / "a.zarr"
    with stopped_after(allowed), pytest.raises(StoppedError):
        written(path)
    assert not path.exists()
    written(path)
    assert verify(path).whole
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_a_store_without_a_row_does_not_block_the_next_recording(tmp_path):
    path = tmp_path / "a.zarr"
    StoreWriter.create(path, LAYOUT, {"kind": "run", "made": "first"}).close()
    writer = StoreWriter.create(path, LAYOUT, {"kind": "run", "made": "again"})
    writer.write_snapshot(0, snapshot())
    writer.close()
    assert spectra.open(path).attrs["made"] == "again"
    with pytest.raises(InputError, match="exists already"):
        StoreWriter.create(path, LAYOUT, {})
    assert verify(path).whole


@pytest.mark.parametrize("held", ["a scan that was begun", "training steps", "something else"])
def test_what_holds_anything_is_not_replaced(tmp_path, held):
    path = tmp_path / "a.zarr"
    if held == "something else":
        path.mkdir()
        (path / "file").write_text("mine")
    else:
        writer = StoreWriter.create(path, LAYOUT, {})
        if held == "training steps":
            writer.write_train_rows([{"train_step": 1}])
        else:
            writer.describe({"begun": {"step": 0}})
            writer.write_piece("spectra/weight", slice(0, 2), snapshot()["spectra/weight"])
        writer.close()
    files = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    with pytest.raises(InputError, match="exists already"):
        StoreWriter.create(path, LAYOUT, {})
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == files


HOLDER = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_store_without_a_row_that_another_process_holds_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "a.zarr"
    StoreWriter.create(path, LAYOUT, {}).close()
    monkeypatch.setattr("spectra.store.writer.PATIENCE", 0.1)
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(InputError, match="another process is writing to"):
            StoreWriter.create(path, LAYOUT, {})
        holder.stdin.close()
    assert path.exists()
    StoreWriter.create(path, LAYOUT, {})


def test_what_killed_writers_left_half_written_is_removed(tmp_path):
    path = tmp_path / "a.zarr"
    unfinished = tmp_path / f".a.zarr.{'0' * 32}.partial"
    (unfinished / "spectra").mkdir(parents=True)
    written(path).close()
    half = path / "spectra/weight/c/2/0/.0.4567.partial"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    assert verify(path).notes == ("1 files are half written; readers do not see them",)
    StoreWriter.resume(path, LAYOUT, {}, step=5).close()
    assert not unfinished.exists()
    assert not half.exists()
    assert verify(path).notes == ()


def test_a_resumption_that_is_killed_leaves_no_gap_in_the_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("spectra.store.layout.TRAIN_CHUNK", 2)
    path = tmp_path / "a.zarr"
    written(path).close()
    for allowed in range(8):
        with stopped_after(allowed), contextlib.suppress(StoppedError):
            StoreWriter.resume(path, LAYOUT, {}, step=1).close()
        steps = spectra.open(path)["train"].train_step.values.tolist()
        assert steps == list(range(1, len(steps) + 1))
        assert verify(path).whole
    assert steps == [1]


def test_the_layout_knows_its_size(tmp_path):
    path = tmp_path / "a.zarr"
    written(path)
    root = zarr.open_group(path, mode="r")
    variables = [(g, v) for g, vs in LAYOUT.groups().items() for v in vs if v.dtype != "string"]
    assert [v.nbytes for _, v in variables] == [root[f"{g}/{v.name}"].nbytes for g, v in variables]
    assert LAYOUT.nbytes >= sum(v.nbytes for _, v in variables)


def test_a_whole_store_is_whole(store):
    verdict = verify(store)
    assert verdict.whole
    assert (verdict.snapshots, verdict.train_steps) == (4, 7)
    assert verdict.notes == ()


def remove(store, path):
    target = store / path
    shutil.rmtree(target) if target.is_dir() else target.unlink()


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda s: remove(s, "spectra/weight/c/1"), "snapshot at step 3: weight is missing"),
        (
            lambda s: remove(s, "sketches/gradient/c/2"),
            "snapshot at step 6: 14 gradients have no sketch",
        ),
        (lambda s: remove(s, "spectra/weight"), "spectra/weight is missing"),
        (lambda s: remove(s, "train"), "train is missing"),
        (lambda s: remove(s, "spectra/gradient/c/1"), "snapshot at step 3: gradient is missing"),
        (lambda s: remove(s, "spectra/update/c/2"), "snapshot at step 6: update is missing"),
        (lambda s: remove(s, "spectra/gradient"), "spectra/gradient is missing"),
        (lambda s: remove(s, "sketches"), "sketches is missing"),
        (lambda s: remove(s, "spectra/layer"), "spectra/layer is missing"),
        (lambda s: remove(s, "spectra/matrix/c"), "spectra/matrix does not hold a name"),
        (lambda s: remove(s, "train/loss"), "train/loss is missing"),
        (lambda s: remove(s, "train/learning_rate/c"), "learning_rate is missing for 7 training"),
        (
            lambda s: flip_a_bit(s / "sketches/gradient/c/3/0/0"),
            "snapshot at step 7: sketches/gradient cannot be read",
        ),
        (
            lambda s: (s / "spectra/weight/zarr.json").write_text("garbage"),
            "spectra/weight cannot be read",
        ),
        (
            lambda s: zarr.open_array(s / "spectra/weight", mode="r+").resize((9, 14, 32)),
            r"spectra/weight has the shape \(9, .*, but readers see \(4, ",
        ),
        (
            lambda s: (s / "spectra/gradient/c/3/0/0").write_bytes(b"broken"),
            "snapshot at step 7: spectra/gradient cannot be read",
        ),
        (
            lambda s: zarr.open_array(s / "spectra/step", mode="r+").__setitem__(1, -1),
            "spectra/step has a gap",
        ),
        (
            lambda s: zarr.open_array(s / "spectra/step", mode="r+").__setitem__(1, 9),
            "spectra/step is not ascending",
        ),
        (
            lambda s: zarr.open_array(s / "spectra/weight", mode="r+").__setitem__((2, 0, 0), 0),
            "snapshot at step 6: weight of model.layers.0.self_attn.q_proj is not a descending",
        ),
        (
            lambda s: zarr.open_array(s / "spectra/update", mode="r+").__setitem__(
                (2, 0, 5), np.nan
            ),
            "snapshot at step 6: update of .* has 31 values instead of 32",
        ),
    ],
)
def test_verify_names_what_is_wrong(store, damage, reason):
    damage(store)
    verdict = verify(store)
    assert not verdict.whole
    assert any(re.search(reason, line) for line in verdict.problems), verdict.problems


GROWING = Layout(MATRICES, contents=Contents(sketch=8))


@pytest.mark.parametrize(
    "allowed",
    [pytest.param(n, marks=[pytest.mark.slow] if n % 24 else []) for n in range(0, 90, 4)],
)
def test_a_kill_while_arrays_grow_costs_nothing(tmp_path, monkeypatch, allowed):
    """Stop after some of the files that growing writes, the metadata that announces it last."""
    path = tmp_path / "a.zarr"
    monkeypatch.setattr("spectra.store.layout.BLOCK", 4)
    monkeypatch.setattr("spectra.store.writer.BLOCK", 4)
    writer = StoreWriter.create(path, GROWING, {})
    for step in range(4):
        writer.write_snapshot(step, snapshot())
    with stopped_after(allowed), contextlib.suppress(StoppedError):
        writer.write_snapshot(4, snapshot())
        writer.write_snapshot(5, snapshot())
    assert spectra.open(path)["spectra"].sizes["step"] in (4, 5, 6)
    verdict = verify(path)
    assert verdict.whole, verdict.problems
    writer = StoreWriter.resume(path, GROWING, {}, step=3)
    for step in range(4, 10):
        writer.write_snapshot(step, snapshot())
    assert spectra.open(path)["spectra"].step.values.tolist() == list(range(10))
    assert verify(path).whole
    assert verify(path).notes == ()


def test_steps_that_a_recorder_passed_over_are_noted(tmp_path):
    path = tmp_path / "a.zarr"
    writer = StoreWriter.create(path, LAYOUT, {"kind": "run", "schedule": Schedule(2).to_dict()})
    for step in (0, 2, 8):
        writer.write_snapshot(step, snapshot())
    rows = [{"train_step": n, "learning_rate": 1.0} for n in (1, 2, 7, 8)]
    writer.write_train_rows(rows)
    verdict = verify(path)
    assert verdict.whole
    assert verdict.notes == (
        "no snapshots at steps [4, 6], though they were due",
        "4 of 8 training steps are not recorded",
    )


def test_a_snapshot_that_was_never_announced_is_noted(tmp_path):
    path = tmp_path / "a.zarr"
    written(path)
    array = zarr.open_array(path / "spectra/weight", mode="r+")
    array[2] = snapshot()["spectra/weight"]
    verdict = verify(path)
    assert verdict.whole
    assert "row 2 holds a snapshot that was never announced" in verdict.notes[0]


def test_what_is_no_store_says_so_in_one_line(tmp_path, store):
    for opening in (spectra.open, verify):
        with pytest.raises(InputError, match="no store at"):
            opening(tmp_path / "nowhere.zarr")
        with pytest.raises(InputError, match=r"is not a zarr store: .* \(did you mean .*run\.zarr"):
            opening(tmp_path)
        (tmp_path / "file").write_text("text")
        with pytest.raises(InputError, match="is not a zarr store"):
            opening(tmp_path / "file")
    zarr.open_group(store, mode="r+").attrs["schema"] = "spectra/99"
    with pytest.raises(InputError, match=r"schema 'spectra/99'; this version reads 'spectra/1'"):
        spectra.open(store)
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(InputError, match="has no schema"):
        verify(tmp_path / "other.zarr")
