"""kill -9, full disks, folders that cannot be written: nothing committed is lost."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

import spectra
from spectra.store.checksums import row_key
from spectra.store.files import DurableStore
from spectra.store.layout import Layout
from spectra.store.writer import StoreWriter
from spectra_data.errors import InputError
from tests.forked import Forked, signalled
from tests.small import random_batch, small_llama, train
from tests.spectra.crash_reader import look, look_on
from tests.spectra.crash_writer import CONTENTS, MATRICES, snapshot, write_on


@pytest.mark.parametrize("kills", [3, pytest.param(150, marks=pytest.mark.slow)])
def test_a_writer_killed_at_any_moment_loses_nothing_and_shows_no_half_snapshot(tmp_path, kills):
    store, stop = tmp_path / "a.zarr", tmp_path / "stop"
    reader = Forked(look_on, store, stop)
    draw, most = random.Random(0), 0
    for _ in range(kills):
        writer = Forked(write_on, store)
        begun = writer.stdout.readline()
        assert begun.startswith("writing")
        # some are waited for, so that a busy machine writes more than it takes back, too
        first = [writer.stdout.readline() for _ in range(draw.randrange(7))]
        time.sleep(draw.uniform(0, 0.1))
        writer.kill()
        later = [*first, *writer.stdout.read().split()]
        promised = [int(begun.split()[1]), *map(int, later)]
        assert writer.wait() == -signal.SIGKILL
        verdict = spectra.verify(store)
        assert verdict.whole, verdict.problems
        assert verdict.snapshots in (promised[-1], promised[-1] + 1)
        assert look(store) == verdict.snapshots
        most = max(most, verdict.snapshots)
    stop.touch()
    readings, errors = reader.communicate(timeout=60)
    assert reader.returncode == 0, errors
    assert int(readings) > kills
    assert most > 3


def test_a_writer_killed_while_it_makes_a_store_leaves_none(tmp_path):
    draw, there = random.Random(1), []
    for attempt in range(4):
        store = tmp_path / f"{attempt}.zarr"
        writer = Forked(signalled, signal.SIGKILL, draw.randrange(1000), ".zarr", write_on, store)
        assert writer.wait() == -signal.SIGKILL
        there.append(store.exists())
        if store.exists():
            assert set(spectra.verify(store).problems) <= {"it holds no snapshot"}
        again = Forked(write_on, store)
        assert again.stdout.readline().startswith("writing")
        assert again.stdout.readline()  # a snapshot
        again.kill()
        again.communicate()
        assert spectra.verify(store).whole
    assert set(there) == {True, False}  # it was killed before and after the store had its name


def test_every_file_is_synced_before_the_step_that_announces_it(tmp_path, monkeypatch):
    """The disk is told to keep each file, and its name, before the next one is begun."""
    events = []
    fsync, replace = os.fsync, type(tmp_path).replace

    def synced(descriptor):
        events.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def replaced(self, target):
        events.append(("name", str(target)))
        return replace(self, target)

    path = tmp_path / "a.zarr"
    writer = StoreWriter.create(path, Layout(MATRICES, 4, 4, CONTENTS), {})
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(type(tmp_path), "replace", replaced)
    writer.write_snapshot(0, snapshot(1))
    monkeypatch.undo()
    named = [(i, name) for i, (kind, name) in enumerate(events) if kind == "name"]
    assert named[-2][1].endswith("spectra/step/c/0")
    rows, steps = len(writer.layout.snapshot_arrays()), len(writer.layout.step_arrays())
    # the row, its checksums, what the steps will be, the steps, and that their files are new
    assert len(named) == rows + 1 + 1 + steps + 1
    assert named[rows][1].endswith(row_key(0))
    boundaries = [i for i, _ in named] + [len(events)]
    for (i, name), begin, end in zip(named, [0, *boundaries], boundaries[1:], strict=False):
        before = [path for kind, path in events[begin:i] if kind == "sync"]
        after = [path for kind, path in events[i:end] if kind == "sync"]
        assert any(".partial" in path for path in before), f"{name} got its name unsynced"
        assert str(Path(name).parent) in after, f"the name of {name} was not synced"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 700 kB, really full when it is."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def recorded_run(store, **options):
    model = small_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    defaults = {"probe": random_batch(0), "every": 1, "steps": 40, "gradients": True}
    with spectra.record(model, optimizer, store, **defaults | options) as recorder:
        train(model, optimizer, 40, recorder=recorder)
    return model, recorder


@pytest.mark.parametrize("background", [None, "wait"])
def test_a_full_disk_stops_the_recorder_in_one_line_and_training_goes_on(small_disk, background):
    store = small_disk / "a.zarr"
    message = "No space left on device.*; training continues"
    with pytest.warns(RuntimeWarning, match=message) as seen:
        model, recorder = recorded_run(store, background=background)
    assert "\n" not in str(seen[0].message)
    assert "No space left" in recorder.stopped
    alone = small_llama()
    train(alone, torch.optim.AdamW(alone.parameters(), lr=1e-2), 40)
    assert torch.equal(model.lm_head.weight, alone.lm_head.weight)
    verdict = spectra.verify(store)
    assert verdict.whole
    assert 0 < verdict.snapshots < 41


def test_a_full_disk_stops_training_where_that_is_asked_for(small_disk):
    with pytest.raises(OSError, match="No space left on device"):
        recorded_run(small_disk / "a.zarr", strict=True)


def test_a_folder_that_cannot_be_written_stops_the_recorder_at_once(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        if os.geteuid() == 0:  # whom no permission stops
            mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
            if subprocess.run(mount, check=False, capture_output=True).returncode:
                pytest.skip("needs the right to mount a file system")
            stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
        else:
            folder.chmod(0o500)
        message = "did not begin: .*a.zarr cannot be written: .*; training continues"
        with pytest.warns(RuntimeWarning, match=message):
            _, recorder = recorded_run(folder / "a.zarr")
        assert recorder.step == 40
        with pytest.raises(InputError, match="cannot be written: "):
            recorded_run(folder / "a.zarr", strict=True)


def test_a_second_writer_is_refused_and_a_killed_one_is_waited_for(tmp_path, monkeypatch):
    store = tmp_path / "a.zarr"
    writer = Forked(write_on, store)
    assert writer.stdout.readline() == "writing 0\n"
    assert writer.stdout.readline() == "1\n"
    layout = Layout(MATRICES, contents=CONTENTS)
    monkeypatch.setattr("spectra.store.writer.PATIENCE", 0.2)
    with pytest.raises(InputError, match=r"another process is writing to .*a\.zarr: wait for it"):
        StoreWriter.resume(store, layout, {}, 0)
    monkeypatch.setattr("spectra.store.writer.PATIENCE", 20)
    writer.kill()
    StoreWriter.resume(store, layout, {}, 0).close()
    writer.communicate()


def test_a_store_opened_anew_in_the_same_process_is_taken_over(tmp_path):
    store = tmp_path / "a.zarr"
    layout = Layout(MATRICES, contents=CONTENTS)
    first = StoreWriter.create(store, layout, {})
    second = StoreWriter.resume(store, layout, {}, 0)
    with pytest.raises(RuntimeError, match="reopened by another"):
        first.write_snapshot(1, snapshot(1))
    first.close()
    second.write_snapshot(1, snapshot(1))
    second.close()
    assert spectra.verify(store).snapshots == 1


def test_a_disk_that_fails_in_the_middle_of_a_file_leaves_the_old_one(tmp_path, monkeypatch):
    store = DurableStore(tmp_path)
    (tmp_path / "a").write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    from zarr.core.buffer import default_buffer_prototype

    buffer = default_buffer_prototype().buffer.from_bytes(b"new")
    with pytest.raises(OSError, match="No space left"):
        store.set_sync("a", buffer)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    shutil.rmtree(tmp_path)
