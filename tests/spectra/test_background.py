"""Recording beside the training loop, and within a share of its time."""

import os
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
import torch

import spectra
from spectra.recording.background import Background, SharedMatrices
from spectra.recording.overhead import Overhead
from spectra.recording.recorder import Recorder
from spectra.store.layout import Contents
from spectra.store.writer import StoreWriter
from tests.forked import Forked
from tests.small import random_batch, small_llama, train

OPTIONS = {"probe": random_batch(0), "every": 2, "steps": 9, "sketch": 64, "gradients": True}


def recorded(path, steps=9, **options):
    model = small_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with spectra.record(model, optimizer, path, **OPTIONS | {"steps": steps} | options) as recorder:
        train(model, optimizer, steps, recorder=recorder)
    return recorder


def same(one, other):
    for path in one.groups:
        for name, array in one[path].to_dataset().data_vars.items():
            if name != "tokens_per_second":
                np.testing.assert_array_equal(array, other[path][name], err_msg=f"{path}/{name}")


def test_the_background_process_writes_what_the_loop_would_have(tmp_path):
    inline = recorded(tmp_path / "inline.zarr")
    beside = recorded(tmp_path / "beside.zarr", background="wait", queue=2)
    same(spectra.open(tmp_path / "inline.zarr"), spectra.open(tmp_path / "beside.zarr"))
    assert beside.dropped == []
    assert beside.snapshots == inline.snapshots == 6
    # the loop's own time is counted as what it is; decomposing is the other process' time
    assert {"copy", "probe gradient"} <= beside.timings.keys()
    assert not {"decomposition", "writing", "sketch"} & beside.timings.keys()
    assert {"decomposition", "writing", "sketch"} <= beside._executor.worker_seconds.keys()


@pytest.fixture
def slow_worker(monkeypatch):
    """A recording process that is stopped until it is let go on."""
    started = []
    original = Background._start

    def start(self, *arguments):
        worker = original(self, *arguments)
        os.kill(worker.pid, signal.SIGSTOP)
        started.append(worker)
        return worker

    monkeypatch.setattr(Background, "_start", start)
    yield started
    for worker in started:
        if worker.poll() is None:
            worker.kill()


def test_snapshots_are_dropped_and_counted_when_the_queue_is_full(tmp_path, slow_worker):
    model = small_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    path = tmp_path / "a.zarr"
    with spectra.record(model, optimizer, path, **OPTIONS, background="drop", queue=2) as recorder:
        train(model, optimizer, 9, recorder=recorder)
        os.kill(slow_worker[0].pid, signal.SIGCONT)
    assert recorder.dropped == [4, 6, 8, 9]
    assert spectra.open(path)["spectra"].step.values.tolist() == [0, 2]
    assert recorder.left_out == ["dropped 4 snapshots, the queue was full: 4, 6, 8, 9"]
    verdict = spectra.verify(path)
    assert verdict.whole
    assert verdict.notes == ("no snapshots at steps [4, 6, 8, 9], though they were due",)
    alone = small_llama()
    train(alone, torch.optim.AdamW(alone.parameters(), lr=1e-2), 9)
    assert torch.equal(model.lm_head.weight, alone.lm_head.weight)


def test_a_full_queue_is_waited_for_and_the_wait_is_counted(tmp_path, slow_worker):
    model = small_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    path = tmp_path / "a.zarr"
    with spectra.record(model, optimizer, path, **OPTIONS, background="wait") as recorder:
        threading.Timer(1.0, os.kill, (slow_worker[0].pid, signal.SIGCONT)).start()
        train(model, optimizer, 9, recorder=recorder)
        assert recorder.timings["waiting"] > 0
    assert spectra.open(path)["spectra"].step.values.tolist() == [0, 2, 4, 6, 8, 9]


def test_a_killed_background_process_stops_the_recorder_and_not_the_training(tmp_path):
    model = small_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    path = tmp_path / "a.zarr"
    recorder = spectra.record(model, optimizer, path, **OPTIONS, background="wait")
    train(model, optimizer, 3, recorder=recorder)
    recorder.flush()
    recorder._executor._worker.kill()
    with pytest.warns(RuntimeWarning, match="recording process has ended .*; training continues"):
        train(model, optimizer, 6, first=3, recorder=recorder)
    recorder.close()
    verdict = spectra.verify(path)
    assert verdict.whole
    assert verdict.snapshots == 2


@pytest.mark.parametrize("background", [None, "wait"])
def test_forked_children_of_a_data_loader_leave_the_recorder_alone(tmp_path, background):
    store = tmp_path / "a.zarr"
    model = small_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = torch.utils.data.TensorDataset(random_batch(5, windows=8))
    loader = torch.utils.data.DataLoader(
        data, batch_size=4, num_workers=1, multiprocessing_context="fork"
    )
    started = time.monotonic()
    with spectra.record(model, optimizer, store, **OPTIONS, background=background) as recorder:
        for _ in range(2):
            for (batch,) in loader:
                model(input_ids=batch, labels=batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        held = subprocess.run(
            ["flock", "--nonblock", str(store), "true"], check=False, capture_output=True
        )
        assert held.returncode == 1  # the store is still this process' own
        assert recorder.stopped is None
    assert time.monotonic() - started < 60
    run = spectra.open(store)
    assert run["train"].train_step.values.tolist() == [1, 2, 3, 4]
    assert spectra.verify(store).whole


def test_a_store_taken_over_from_a_background_recorder_has_one_writer(tmp_path):
    store = tmp_path / "a.zarr"
    model = small_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = spectra.record(model, optimizer, store, **OPTIONS, background="wait", queue=4)
    train(model, optimizer, 6, recorder=first)  # the cell of a notebook that was interrupted
    again = small_llama()
    fresh = torch.optim.AdamW(again.parameters(), lr=1e-2)
    options = OPTIONS | {"resume": True}
    with spectra.record(again, fresh, store, **options, background="wait") as second:
        assert first._executor._worker.poll() is not None
        train(again, fresh, 9, recorder=second)
        assert second.stopped is None
    assert spectra.open(store)["spectra"].step.values.tolist() == [0, 2, 4, 6, 8, 9]
    assert spectra.verify(store).whole
    with pytest.warns(RuntimeWarning, match="reopened by another"):
        train(model, optimizer, 2, first=6, recorder=first)
    first.close()


def test_what_a_library_prints_in_the_background_process_is_no_answer(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import atexit; print('hello from a library')")
    monkeypatch.syspath_prepend(str(folder))
    recorder = recorded(tmp_path / "a.zarr", background="wait")
    assert recorder.stopped is None
    assert spectra.verify(tmp_path / "a.zarr").snapshots == 6


def trained_on(store):
    """Training that says who records it."""
    model = small_llama()
    optimizer = torch.optim.AdamW(model.parameters())
    options = {"probe": random_batch(0), "every": 1, "background": "wait", "gradients": True}
    recorder = spectra.record(model, optimizer, store, **options)
    print(recorder._executor._worker.pid, flush=True)
    train(model, optimizer, 1000, recorder=recorder)


def test_a_killed_training_process_takes_the_background_process_along(tmp_path):
    path = tmp_path / "a.zarr"
    training = Forked(trained_on, path)
    worker = int(training.stdout.readline())
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and spectra.open(path)["spectra"].sizes["step"] < 3:
        time.sleep(0.1)
    training.kill()
    training.wait()
    while time.monotonic() < deadline and alive(worker):
        time.sleep(0.02)
    assert not alive(worker)
    assert spectra.verify(path).whole
    model = small_llama()
    optimizer = torch.optim.AdamW(model.parameters())
    options = OPTIONS | {"every": 1, "steps": None, "sketch": 4096}
    with spectra.record(model, optimizer, path, **options, start_step=1, resume=True) as recorder:
        assert recorder.snapshots == 2
    assert spectra.verify(path).whole


def alive(process):
    try:
        with open(f"/proc/{process}/stat") as f:  # noqa: PTH123
            return f.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_the_memory_of_the_queue_is_what_its_snapshots_need(tmp_path):
    recorder = recorded(tmp_path / "a.zarr", background="wait", queue=3)
    numbers = sum(m.rows * m.cols for m in recorder.layout.matrices)
    assert isinstance(recorder._executor, Background)
    assert recorder._executor.nbytes == 3 * 3 * 4 * numbers  # slots, kinds, bytes


def test_matrices_lie_in_shared_memory_as_they_were(tmp_path):
    layout = recorded(tmp_path / "a.zarr").layout
    memory = SharedMatrices(layout, 2)
    matrices = [torch.randn(m.rows, m.cols) for m in layout.matrices]
    statuses = memory.put(1, "weight", matrices)
    memory.put(0, "weight", [m * 2 for m in matrices])
    memory.put(1, "update", [m.T.contiguous().T for m in matrices])
    other = SharedMatrices(layout, 2, memory.descriptor)  # as the child process maps it
    for one, two in zip(other.get(1, "weight", statuses), matrices, strict=True):
        assert torch.equal(one, two)


def test_flushing_waits_for_copies_that_are_still_under_way(tmp_path, monkeypatch):
    """As on CUDA, where a snapshot is handed over when the device says that it is copied."""

    class Event:
        def synchronize(self):
            waited.append(threading.current_thread())
            time.sleep(0.3)

    waited = []

    monkeypatch.setattr(SharedMatrices, "copied", lambda self: Event())
    beside = recorded(tmp_path / "a.zarr", background="wait", queue=2)
    assert threading.current_thread() not in waited  # the loop itself never waits for the device
    assert beside.stopped is None
    monkeypatch.undo()
    recorded(tmp_path / "b.zarr")
    same(spectra.open(tmp_path / "a.zarr"), spectra.open(tmp_path / "b.zarr"))


CONTENTS = Contents(("weight", "gradient", "update"), 64, gradients=True)


def test_a_budget_leaves_out_what_is_worth_least_first():
    budget = Overhead(0.1, CONTENTS)
    budget.learn(
        {"gradient": 2.0, "weight": 1.0, "sketch": 0.1, "update": 1.0, "raw_gradient": 3.0}
    )
    assert budget.choose(1000.0, 50.0, always=False) == CONTENTS
    some = budget.choose(100.0, 7.0, always=False)
    assert some.parts == ("weight", "gradient", "sketch")
    assert budget.choose(100.0, 9.0, always=False) is None
    assert budget.choose(100.0, 50.0, always=True) == CONTENTS
    assert dict(budget.spared) == {"update": 1, "raw_gradient": 1, "snapshot": 1}
    assert "left out to stay within 10.00% of the time" in budget.describe()


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_a_budget_holds_over_a_long_run_whatever_snapshots_cost(share):
    """On a clock of our own: steps of a second, snapshots of random cost."""
    draw = np.random.default_rng(0)
    budget = Overhead(share, CONTENTS)
    now = spent = 0.0
    taken = 0
    for step in range(20_000):
        now += 1.0
        contents = budget.choose(now, spent, always=False) if step % 10 == 0 else None
        if contents is None:
            continue
        seconds = {part: draw.uniform(0.5, 1.5) for part in contents.parts}
        budget.learn(seconds)
        cost = sum(seconds.values())
        now, spent, taken = now + cost, spent + cost, taken + 1
    assert spent / now <= share * 1.05
    assert spent / now >= share * 0.8 or taken == 2000
    assert budget.spared["snapshot"] + taken == 2000


def test_what_a_budget_leaves_out_is_said_in_the_store(tmp_path, monkeypatch):
    chosen = iter([None, CONTENTS.only(("weight", "gradient")), CONTENTS])
    original = Overhead.choose

    def choose(self, elapsed, spent, *, always):
        return original(self, elapsed, spent, always=True) if always else next(chosen)

    monkeypatch.setattr(Overhead, "choose", choose)
    recorder = recorded(tmp_path / "a.zarr", steps=8, overhead=0.5)
    assert recorder.stopped is None
    run = spectra.open(tmp_path / "a.zarr")
    assert run["spectra"].step.values.tolist() == [0, 4, 6, 8]
    codes = run["status"].code
    spared = codes.sel(step=4).isel(matrix=0).values.tolist()
    assert dict(zip(codes.part.values.tolist(), spared, strict=True)) == {
        "weight": 0, "gradient": 0, "update": 6, "sketch": 6, "raw_gradient": 6,
    }  # fmt: skip
    assert np.isnan(run["spectra"]["update"].sel(step=4)).all()
    assert np.isfinite(run["sketches"].gradient.sel(step=6)).all()
    assert spectra.verify(tmp_path / "a.zarr").whole


def test_a_real_run_stays_within_its_budget_or_says_what_it_took(tmp_path, monkeypatch):
    """With a clock that the test advances, so that no machine is too slow for it."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    original = StoreWriter.write_snapshot

    def write(self, *arguments):
        now[0] += 3.0
        original(self, *arguments)

    monkeypatch.setattr(StoreWriter, "write_snapshot", write)
    model = small_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    options = OPTIONS | {"every": 1, "steps": 100, "gradients": False}
    with spectra.record(model, optimizer, tmp_path / "a.zarr", **options, overhead=0.1) as recorder:
        assert isinstance(recorder, Recorder)
        for step in range(99):
            now[0] += 1.0
            train(model, optimizer, 1, first=step)
        share = recorder.share
    assert share <= 0.1
    assert share > 0.05
    assert "x snapshot" in recorder.left_out[0]


def test_the_first_and_last_of_listed_snapshots_are_always_whole(tmp_path):
    recorder = recorded(tmp_path / "a.zarr", every=[3, 5, 7], overhead=1e-6)
    steps = spectra.open(tmp_path / "a.zarr")["spectra"].step.values.tolist()
    assert steps == [3, 7]
    assert recorder.left_out == ["left out to stay within 0.00% of the time: 1 x snapshot"]
