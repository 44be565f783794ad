"""Measured perplexities beside the spectra they belong to."""

import contextlib
import errno
import itertools
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import spectra
from spectra.allocation.path import write_path
from spectra.store import evaluations as evaluations_module
from spectra.store.evaluations import Evaluation, add_evaluation, evaluations
from spectra.store.layout import Layout
from spectra.store.lock import FolderLock
from spectra.store.verify import verify
from spectra.store.writer import StoreWriter
from spectra_data.errors import InputError
from tests.spectra.crash_writer import CONTENTS, MATRICES, snapshot
from tests.spectra.damage import content, scan_store
from tests.spectra.interruption import StoppedError, stopped_after

ONE = Evaluation(0.4, 0.8, 14.5, "welore", data="text, with a comma")
OTHER = Evaluation(0.2, 0.9, 11.0, "uniform", "whiten", "pivoted")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return scan_store(tmp_path_factory.mktemp("made") / "a.zarr")


@pytest.fixture
def scan(made, tmp_path):
    """A scan of its own for each test."""
    return Path(shutil.copytree(made, tmp_path / "a.zarr"))


def test_measurements_are_read_back_in_order(store):
    assert evaluations(spectra.open(store)) == []
    add_evaluation(store, ONE)
    add_evaluation(store, OTHER)
    assert evaluations(spectra.open(store)) == [ONE, OTHER]
    assert not verify(store).problems


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_an_addition_that_is_interrupted_keeps_what_was_there(scan, every):
    """Stop before files in turn: readers find all evaluations with the new one or without."""
    store = scan
    before = evaluations(spectra.open(store))
    for allowed in itertools.count(0, every):
        finished = False
        with stopped_after(allowed), contextlib.suppress(StoppedError):
            add_evaluation(store, ONE)
            finished = True
        found = evaluations(spectra.open(store))
        assert found in (before, [*before, ONE]), allowed
        verdict = verify(store)
        assert verdict.whole, (allowed, verdict.problems)
        if finished:
            break
        before = found
    add_evaluation(store, OTHER)
    assert evaluations(spectra.open(store)) == [*found, OTHER]
    assert verify(store).notes == ()
    assert allowed > 10


@pytest.mark.parametrize("group", ["evaluations", "path"])
@pytest.mark.parametrize("files", [(9,), pytest.param((0, 1, 9, 18), marks=pytest.mark.slow)])
def test_a_disk_that_is_full_keeps_what_was_there(scan, group, files):
    store = scan
    before = content(store)
    write = {
        "evaluations": lambda: add_evaluation(store, ONE),
        "path": lambda: write_path(store, spacing=0.05),
    }[group]
    for allowed in files:
        full = OSError(errno.ENOSPC, "No space left on device")
        with (
            stopped_after(allowed, full),
            pytest.raises(InputError, match="No space left on device; its contents are kept"),
        ):
            write()
        assert content(store) == before
        assert verify(store).whole
    write()
    assert content(store) != before


def test_two_additions_at_once_are_both_kept(scan, monkeypatch):
    store = scan
    before = evaluations(spectra.open(store))
    slow, quick = threading.Event(), threading.Event()
    write_group = evaluations_module.write_group

    def slowly(*arguments):
        if not slow.is_set():
            slow.set()
            quick.wait(0.5)
        write_group(*arguments)

    monkeypatch.setattr(evaluations_module, "write_group", slowly)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(add_evaluation, store, ONE)
        slow.wait()
        second = pool.submit(lambda: (add_evaluation(store, OTHER), quick.set()))
        first.result(), second.result()
    assert evaluations(spectra.open(store)) == [*before, ONE, OTHER]


def test_an_addition_waits_for_a_writer_and_says_when_it_waited_for_too_long(scan, monkeypatch):
    store = scan
    held = FolderLock(store)
    monkeypatch.setattr("spectra.store.derived.PATIENCE", 0.1)
    with pytest.raises(InputError, match=r"another process is writing to .*: wait for it"):
        add_evaluation(store, ONE)
    monkeypatch.setattr("spectra.store.derived.PATIENCE", 20)
    threading.Timer(0.1, held.release).start()
    add_evaluation(store, ONE)
    assert evaluations(spectra.open(store))[-1] == ONE


def test_who_opened_a_store_before_an_addition_reads_what_it_held_then(scan):
    store = scan
    opened, before = spectra.open(store), evaluations(spectra.open(store))
    add_evaluation(store, ONE)
    assert evaluations(opened) == before
    assert evaluations(spectra.open(store)) == [*before, ONE]


def test_additions_to_a_store_elsewhere_are_read_back(tmp_path):
    store = f"memory://{tmp_path.name}/a.zarr"
    StoreWriter.create(store, Layout(MATRICES, 4, 4, CONTENTS), {}).write_snapshot(1, snapshot(1))
    for one in (ONE, OTHER, ONE):
        add_evaluation(store, one)
    assert evaluations(spectra.open(store)) == [ONE, OTHER, ONE]
    assert verify(store).whole
    assert verify(store).notes == ()


@pytest.mark.parametrize(
    "fields", [{"err": 1.5}, {"budget": -0.1}, {"perplexity": float("nan")}, {"perplexity": 0.0}]
)
def test_what_cannot_be_measured_is_refused(fields):
    with pytest.raises(InputError, match="not "):
        Evaluation(**{"err": 0.1, "budget": 0.9, "perplexity": 9.0, "allocation": "a"} | fields)
