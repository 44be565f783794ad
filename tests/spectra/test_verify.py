"""What `verify` says of a store: every damage is named, no interruption is taken for one."""

import contextlib
import itertools
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

import spectra
from spectra.cli import main
from spectra.store import integrity
from spectra.store.checksums import FILES, row_key
from spectra.store.evaluations import Evaluation, add_evaluation
from spectra.store.layout import Contents, Layout
from spectra.store.verify import verify
from spectra.store.writer import StoreWriter
from spectra_data.errors import InputError
from tests.spectra.crash_writer import CONTENTS, MATRICES, snapshot
from tests.spectra.damage import content, damaged, in_use, run_store, scan_store, without_checksums
from tests.spectra.interruption import StoppedError, stopped_after


@pytest.fixture(scope="module", params=[run_store, scan_store], ids=["run", "scan"])
def whole(request, tmp_path_factory):
    """A store with every group; what a test damages, it mends."""
    return request.param(tmp_path_factory.mktemp("whole") / "a.zarr")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return run_store(tmp_path_factory.mktemp("made") / "a.zarr")


@pytest.fixture
def run(made, tmp_path):
    """A run of its own for each test."""
    return Path(shutil.copytree(made, tmp_path / "a.zarr"))


def resumed(store):
    return StoreWriter.resume(store, Layout(MATRICES, 5, 8, CONTENTS), {}, 8)


@pytest.mark.parametrize("count", [12, pytest.param(500, marks=pytest.mark.slow)])
def test_no_damage_to_a_file_in_use_is_silent(whole, count):
    draw = random.Random(count)
    for _ in range(count):
        with damaged(whole, draw) as (what, changed):
            try:
                named = not verify(whole).whole
            except InputError:  # no store at all any more
                named = True
            assert named == changed, what
    assert verify(whole).whole
    assert verify(whole).notes == ()


@pytest.mark.parametrize("count", [8, pytest.param(500, marks=pytest.mark.slow)])
def test_damage_to_a_store_without_checksums_raises_nothing_but_a_line(whole, tmp_path, count):
    store = without_checksums(shutil.copytree(whole, tmp_path / "a.zarr"))
    assert verify(store).whole
    draw = random.Random(count)
    for _ in range(count):
        with damaged(store, draw), contextlib.suppress(InputError):
            verify(store)


def test_a_store_of_an_earlier_version_is_verified_and_said_to_have_no_checksums(run):
    before = content(without_checksums(run))
    verdict = verify(run)
    assert verdict.whole
    assert verdict.notes == (
        "it has no checksums, since an earlier version began it: some damage may not show",
    )
    resumed(run).close()
    assert content(run) == before


def test_a_store_of_an_earlier_version_has_checksums_of_what_is_added(run):
    without_checksums(run)
    writer = resumed(run)
    writer.write_snapshot(9, snapshot(9))
    writer.close()
    assert verify(run).notes == ("the first 4 rows have no checksums",)
    swap(run / "spectra/weight/c/4/0/0", run / "spectra/weight/c/3/0/0")
    assert any("at step 9: spectra/weight/c/4" in line for line in verify(run).problems)


def test_a_record_of_checksums_that_is_damaged_is_made_anew_with_a_warning(run):
    (run / FILES).write_bytes((run / FILES).read_bytes().replace(b"a", b"b", 1))
    assert verify(run).problems == (f"its record of checksums, {FILES}, is damaged",)
    writer = resumed(run)
    with pytest.warns(RuntimeWarning, match="is damaged: it is rebuilt"):
        writer.write_snapshot(9, snapshot(9))
    writer.close()
    assert verify(run).whole
    assert verify(run).notes == ()


def swap(file, other):
    file.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda s: swap(s / "spectra/weight/c/1/0/0", s / "spectra/weight/c/2/0/0"),
            "snapshot at step 2: spectra/weight/c/1/0/0 is not what was written",
        ),
        (lambda s: (s / "train/loss/c/0").unlink(), "train/loss/c/0 is missing"),
        (lambda s: (s / "status/layer/c/0").unlink(), "status/layer/c/0 is missing"),
        (lambda s: (s / "path/rank/c/0/0").unlink(), "path/rank/c/0/0 is missing"),
        (
            lambda s: swap(s / "subspaces/rows/c/0", s / "subspaces/cols/c/0"),
            "subspaces/rows/c/0 is not what was written",
        ),
        (
            lambda s: zarr.open_array(s / "train/loss", mode="r+").attrs.update(units="bit"),
            "train/loss differs from what readers see: attributes",
        ),
        (
            lambda s: zarr.open_group(s, mode="r+").attrs.update(config={"rate": 0.5}),
            "zarr.json is not what was written",
        ),
        (lambda s: (s / FILES).unlink(), f"its record of checksums, {FILES}, is missing"),
        (
            lambda s: (s / row_key(2)).unlink(),
            f"snapshot at step 3: its checksums, {row_key(2)}, are missing or damaged",
        ),
        (
            lambda s: swap(s / row_key(2), s / row_key(1)),
            "snapshot at step 3: its checksums are of another snapshot",
        ),
    ],
)
def test_damage_is_named_by_the_file(run, damage, reason):
    damage(run)
    assert [line for line in verify(run).problems if reason in line]


def test_a_chunk_that_nobody_wrote_is_a_fault_and_other_files_are_a_note(run):
    (run / "notes.txt").write_text("mine")
    assert verify(run).whole
    assert verify(run).notes == ("1 files are foreign to this store, such as notes.txt",)
    writer = resumed(run)
    writer.write_snapshot(9, {"spectra/weight": snapshot(9)["spectra/weight"]})
    (run / "sketches/gradient/c/4/0").mkdir(parents=True)
    swap(run / "sketches/gradient/c/4/0/0", run / "sketches/gradient/c/2/0/0")
    expected = "snapshot at step 9: sketches/gradient/c/4/0/0 was not written here"
    assert expected in verify(run).problems


def test_a_store_without_a_snapshot_is_no_whole_store(tmp_path, capsys):
    StoreWriter.create(tmp_path / "a.zarr", Layout(MATRICES, 5, 8, CONTENTS), {}).close()
    assert main(["verify", str(tmp_path / "a.zarr")]) == 1
    assert "it holds no snapshot" in capsys.readouterr().out


def everything(path):
    """Whatever is ever written to a store; it may be interrupted before each file, and go on."""
    layout = Layout(MATRICES, contents=Contents(("weight",), sketch=8))
    arrays = {
        "spectra/weight": snapshot(1)["spectra/weight"],
        "sketches/gradient": snapshot(1)["sketches/gradient"],
        "status/code": np.zeros((2, 2), np.uint8),
    }
    if not path.exists():
        writer = StoreWriter.create(path, layout, {"kind": "run"})
        writer.write_snapshot(1, arrays)
        writer.write_train_rows([{"train_step": 1, "learning_rate": 1.0}])
    writer = StoreWriter.resume(path, layout, {}, 1)
    writer.write_snapshot(2, arrays)
    writer.write_train_rows([{"train_step": n, "learning_rate": 1.0} for n in (2, 3)])
    writer.describe({"config": {"rate": 1}})
    for name, values in arrays.items():
        writer.write_piece(name, slice(0, 2), values)
    writer.announce(4)
    writer.write_train_rows([{"train_step": n, "learning_rate": 1.0} for n in (4, 5)])
    writer.close()
    for perplexity in (9.0, 8.0):
        add_evaluation(path, Evaluation(0.5, 0.75, perplexity, "welore"))


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_an_interruption_is_never_taken_for_damage(tmp_path, monkeypatch, every):
    """Stop before a file of all that is ever written to a store, then before a later one."""
    monkeypatch.setattr("spectra.store.layout.BLOCK", 2)
    monkeypatch.setattr("spectra.store.writer.BLOCK", 2)
    monkeypatch.setattr("spectra.store.layout.TRAIN_CHUNK", 2)
    monkeypatch.setattr("spectra.store.writer.TRAIN_CHUNK", 2)
    base, path = tmp_path / "base.zarr", tmp_path / "a.zarr"
    with stopped_after(70), contextlib.suppress(StoppedError):
        everything(base)
    everything(base)
    for allowed in itertools.count(0, every):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(base, path)
        finished = False
        with stopped_after(allowed), contextlib.suppress(StoppedError):
            everything(path)
            finished = True
        verdict = verify(path)
        assert verdict.whole, (allowed, verdict.problems)
        spectra.open(path).load()
        if finished:
            break


def test_a_store_that_is_written_while_it_is_verified_is_whole(run, monkeypatch):
    writer = resumed(run)
    rows = iter(
        [[{"train_step": 9, "learning_rate": 1.0}], [{"train_step": 10, "learning_rate": 1.0}]]
    )
    digests = integrity.digests

    def meanwhile(store, wanted):
        if more := next(rows, None):
            writer.write_train_rows(more)
        return digests(store, wanted)

    monkeypatch.setattr(integrity, "digests", meanwhile)
    verdict = verify(run)
    assert verdict.whole, verdict.problems


def test_every_file_of_a_store_is_in_use_or_of_the_evaluations_before(run):
    retired = {file for file in run.rglob("*") if file.is_file()} - {*in_use(run)}
    assert {file.relative_to(run).parts[0] for file in retired} == {"evaluations"}
