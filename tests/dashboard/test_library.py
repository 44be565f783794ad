"""Stores and maps below a folder, by name."""

import fcntl
import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

import spectra
from spectra_dashboard.access import library as library_module
from spectra_dashboard.access.library import Library
from spectra_dashboard.access.memory import Memory
from spectra_dashboard.access.run import MOST_MATRICES, Run
from spectra_dashboard.access.summary import sparkline, summary, writer_alive
from spectra_dashboard.pages import runs
from spectra_data.errors import InputError
from tests.dashboard.served import Growing, write_scan


@pytest.fixture
def library(folder):
    return Library(folder)


def test_stores_and_maps_are_found_by_name(library):
    assert list(library.runs) == ["broken.zarr", "other.zarr", "scan.zarr", "small/spectra.zarr"]
    assert [run.label for run in library.runs.values()] == ["broken", "other", "scan", "small"]
    assert list(library.maps) == ["maps/map.json"]
    assert library.map("maps/map.json").asked["err"] == 0.4


def test_a_folder_that_is_a_store_is_shown_alone(folder):
    assert list(Library(folder / "scan.zarr").runs) == ["scan.zarr"]


@pytest.mark.parametrize("name", ["../small/spectra.zarr", "/etc", "", "small", "scan.zarr/"])
def test_only_names_that_were_found_are_looked_up(library, name):
    with pytest.raises(InputError, match="there is no store called"):
        library.run(name)
    with pytest.raises(InputError, match="there is no rank map called"):
        library.map(name)


def test_hidden_folders_are_passed_over(tmp_path, folder):
    shutil.copytree(folder / "scan.zarr", tmp_path / ".hidden" / "scan.zarr")
    assert not Library(tmp_path).runs


@pytest.fixture
def shared(tmp_path, folder):
    """A folder that is served, with a store and a map, next to one that is not."""
    for name in ("served", "outside"):
        shutil.copytree(folder / "scan.zarr", tmp_path / name / "scan.zarr")
        shutil.copy(folder / "maps" / "map.json", tmp_path / name / "map.json")
    return tmp_path / "served"


def test_links_that_lead_out_of_the_folder_are_not_followed(shared):
    outside = shared.parent / "outside"
    (shared / "linked").symlink_to(outside)
    (shared / "store.zarr").symlink_to(outside / "scan.zarr")
    (shared / "linked.json").symlink_to(outside / "map.json")
    (shared / "twice.json").symlink_to("linked.json")
    (shared / "around.zarr").symlink_to("../outside/scan.zarr")
    (shared / "itself.zarr").symlink_to("itself.zarr")
    library = Library(shared)
    assert (list(library.runs), list(library.maps)) == (["scan.zarr"], ["map.json"])


def test_links_inside_the_folder_are_followed(shared):
    (shared / "again.zarr").symlink_to("scan.zarr")
    (shared / "again.json").symlink_to("map.json")
    library = Library(shared)
    assert library.run("again.zarr").matrices() == library.run("scan.zarr").matrices()
    assert library.map("again.json") == library.map("map.json")


def test_a_folder_that_is_reached_by_a_link_is_served(shared):
    (shared.parent / "link").symlink_to(shared)
    assert Library(shared.parent / "link").run("scan.zarr").matrices()


@pytest.mark.parametrize("part", ["zarr.json", "spectra", "spectra/matrix", "spectra/weight/c/0"])
def test_links_in_a_store_that_lead_out_are_refused_when_they_are_read(shared, part):
    run = Library(shared).run("scan.zarr")
    replaced = shared / "scan.zarr" / part
    replaced.rename(shared.parent / "moved")
    replaced.symlink_to(shared.parent / "moved")
    with pytest.raises(InputError, match="a link that leads out of the folder") as refused:
        run.spectrum("weight", run.matrices()[0].name, 0)
    assert str(shared) not in str(refused.value)
    with pytest.raises(InputError, match="a link that leads out of the folder"):
        run.measures(0)


def test_a_map_that_becomes_a_link_is_refused_when_it_is_read(shared):
    library = Library(shared)
    assert library.maps
    (shared / "map.json").unlink()
    (shared / "map.json").symlink_to(shared.parent / "outside" / "map.json")
    with pytest.raises(InputError, match="is a link that leads out of the folder"):
        library.map("map.json")


DEEP = '{"schema": "spectra.rankmap/1", "modules": ' + "[" * 50_000 + "]" * 50_000 + "}"


def test_what_one_file_holds_keeps_no_other_from_being_found(shared):
    (shared / "deep.json").write_text(DEEP)
    (shared / "surrogate.json").write_text(DEEP.replace("modules", "\\ud800"))
    os.mkfifo(shared / "pipe.json")
    for name, held in {"deep": "[" * 50_000, "attributes": '{"attributes": {"schema": "spectra/1",'
                       f' "model": {"[" * 9_000 + "]" * 9_000}}}}}'}.items():  # fmt: skip
        (shared / f"{name}.zarr").mkdir()
        (shared / f"{name}.zarr" / "zarr.json").write_text(held)
    (shared / "pipe.zarr").mkdir()
    os.mkfifo(shared / "pipe.zarr" / "zarr.json")
    (shared / os.fsdecode(b"\xff.zarr")).mkdir()
    (shared / "a\x1b[2J\n.zarr").mkdir()
    library = Library(shared)
    assert list(library.maps) == ["deep.json", "map.json", "surrogate.json"]
    odd = {"a\\x1b[2J\\n.zarr", "\\udcff.zarr"}
    assert set(library.runs) == {"scan.zarr", "deep.zarr", "attributes.zarr", "pipe.zarr"} | odd
    states = {run.name: summary(run).state for run in library.runs.values()}
    assert states.pop("scan.zarr") == "finished"
    assert set(states.values()) == {"unreadable"}
    for name in ("deep.json", "surrogate.json"):
        with pytest.raises(InputError, match="nested too deeply"):
            library.map(name)


def test_a_folder_that_may_not_be_entered_keeps_no_other_from_being_found(shared, monkeypatch):
    (shared / "locked").mkdir()
    real = Path.stat

    def stat(path, **more):
        if path.parent.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **more)

    monkeypatch.setattr(Path, "stat", stat)
    assert list(Library(shared).runs) == ["scan.zarr"]


def test_a_new_store_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(library_module, "LOOK_AGAIN", 0.0)
    library = Library(tmp_path)
    assert not library.runs
    write_scan(tmp_path / "a.zarr", layers=1, size=8)
    assert list(library.runs) == ["a.zarr"]
    shutil.rmtree(tmp_path / "a.zarr")
    assert not library.runs


def test_no_folder_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="name the folder of your stores"):
        Library(tmp_path / "none")


def test_a_summary_says_what_a_run_is(library):
    found = summary(library.run("small/spectra.zarr"))
    run = spectra.open(library.run("small/spectra.zarr").path)
    assert (found.kind, found.snapshots, found.step, found.steps) == ("run", 4, 7, 7)
    assert found.state == "finished"
    assert found.loss == pytest.approx(float(run["train"].loss[-1]))
    assert found.tokens == int(run["train"].tokens[-1])
    assert len(found.sparks) == 7
    assert summary(library.run("scan.zarr")).state == "finished"


@pytest.mark.parametrize(
    "name", ["x" * 1_000_000, "\ud800", ["\ud800\x1b"], {"a": 1}, 10**400, None]
)
def test_whatever_a_model_is_called_its_row_can_be_sent(shared, name):
    rewrite(shared / "scan.zarr", lambda m: m["attributes"].update(model={"name": name}))
    row = runs.row(summary(Library(shared).run("scan.zarr")))
    assert len(json.dumps(row, ensure_ascii=False).encode()) < 2_000


def test_a_broken_store_is_listed_with_the_reason_and_without_its_path(library):
    found = summary(library.run("broken.zarr"))
    assert found.state == "unreadable"
    assert "broken.zarr/zarr.json is not JSON" in found.reason
    assert str(library.folder) not in found.reason


def unfinished(path, steps=10):
    """A store of a run that took its first snapshot only."""
    made = Growing(path, steps)
    made.snapshots(1)
    return made


def test_a_run_is_running_while_somebody_writes_and_stalled_after(tmp_path):
    writer = unfinished(tmp_path / "a.zarr")
    run = Library(tmp_path).run("a.zarr")
    assert summary(run).state == "running"
    for place in (tmp_path / "a.zarr").rglob("*"):
        os.utime(place, (1, 1))
    assert summary(run).state == "stalled"
    writer.close()
    (tmp_path / "a.zarr" / "spectra" / "step" / "c" / "0").touch()
    assert summary(run).state == "stalled"
    writer = unfinished(tmp_path / "open.zarr", steps=None)
    writer.close()
    assert summary(Run("open.zarr", tmp_path / "open.zarr", Memory())).state == "finished"


def test_looking_for_a_writer_takes_no_lock(tmp_path):
    descriptor = os.open(tmp_path, os.O_RDONLY)
    assert writer_alive(tmp_path) is False
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert writer_alive(tmp_path) is True
    os.close(descriptor)
    assert writer_alive(tmp_path) is False


def test_sparklines_are_scaled_means():
    assert sparkline(np.array([4.0, 3.0, 2.0])) == (1.0, 0.5, 0.0)
    assert sparkline(np.array([1.0, np.nan])) == ()
    assert sparkline(np.full(100, 2.0)) == (0.5,) * 48


def test_snapshots_that_are_new_are_seen(tmp_path):
    writer = unfinished(tmp_path / "a.zarr")
    run = Library(tmp_path).run("a.zarr")
    assert run.steps().tolist() == [0]
    writer.snapshots(1)
    assert run.steps().tolist() == [0, 1]
    rows = run.spectrum_rows("weight", run.matrices()[0].name, slice(1, 2), 4)
    np.testing.assert_array_equal(rows[0], spectra.open(run.path)["spectra"].weight[1, 0, :4])
    writer.close()


def test_pairs_agree_with_the_library(library):
    run = library.run("small/spectra.zarr")
    opened = spectra.open(run.path)
    for matrix in [m.name for m in run.matrices()][::4]:
        for what in ("sketch", "exact"):
            expected = spectra.cosine_similarity(opened, method=what).sel(matrix=matrix)
            np.testing.assert_allclose(run.pairs(what, matrix).values, expected, atol=1e-6)
        overlap = spectra.subspace_overlap(opened).sel(matrix=matrix)
        found = run.pairs("overlap", matrix)
        np.testing.assert_allclose(found.values, overlap.overlap, atol=1e-6)
        assert found.chance == pytest.approx(float(overlap.chance))


def test_measures_agree_with_the_library(library):
    run = library.run("small/spectra.zarr")
    expected = spectra.metrics_table(spectra.open(run.path)).sel(step=6)
    found = run.measures(6)
    np.testing.assert_allclose(found.stable_rank, expected.stable_rank)
    np.testing.assert_allclose(found.alpha, expected.alpha)


def rewrite(store, change):
    """Change the metadata of a store's arrays."""
    metadata = json.loads((store / "zarr.json").read_text())
    change(metadata)
    (store / "zarr.json").write_text(json.dumps(metadata))


def test_measures_of_a_step_that_was_written_again_are_new(tmp_path):
    writer = unfinished(tmp_path / "a.zarr")
    run = Library(tmp_path).run("a.zarr")
    before = run.measures(0)
    writer.take_back(-1)
    writer.snapshots(1)
    writer.close()
    expected = spectra.metrics_table(spectra.open(run.path)).sel(step=0)
    assert not np.allclose(before.stable_rank, expected.stable_rank)
    np.testing.assert_allclose(run.measures(0).stable_rank, expected.stable_rank)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["attributes"].update(schema="spectra/9"), "has the schema 'spectra/9'"),
        (lambda m: m.update(attributes=[]), "not a mapping"),
        (lambda m: m.pop("attributes"), "not a mapping"),
    ],
)
def test_stores_of_another_kind_are_refused_everywhere(tmp_path, change, said):
    write_scan(tmp_path / "a.zarr", layers=1, size=8)
    rewrite(tmp_path / "a.zarr", change)
    run = Run("a.zarr", tmp_path / "a.zarr", Memory())
    for ask in (run.attributes, run.steps, run.matrices, run.tree, run.kinds):
        with pytest.raises(InputError, match=said):
            ask()


def test_steps_with_gaps_are_refused(tmp_path):
    unfinished(tmp_path / "a.zarr").close()
    array = zarr.open_array(tmp_path / "a.zarr" / "spectra" / "step", mode="r+")
    array[2] = 5
    with pytest.raises(InputError, match="gaps or is not ascending"):
        Library(tmp_path).run("a.zarr").steps()


def test_matrices_of_one_name_are_refused(tmp_path):
    unfinished(tmp_path / "a.zarr").close()
    names = zarr.open_array(tmp_path / "a.zarr" / "spectra" / "matrix", mode="r+")
    names[1] = names[0]
    with pytest.raises(InputError, match="two of one name"):
        Library(tmp_path).run("a.zarr").matrices()


def test_arrays_in_very_many_chunks_are_refused(tmp_path):
    write_scan(tmp_path / "a.zarr", layers=1, size=8)

    def cut(metadata):
        array = metadata["consolidated_metadata"]["metadata"]["spectra/step"]
        array["shape"] = [9_000_000]

    rewrite(tmp_path / "a.zarr", cut)
    with pytest.raises(InputError, match="is cut into 9000000 chunks"):
        Library(tmp_path).run("a.zarr").steps()


def test_a_store_that_says_it_is_huge_is_refused(tmp_path):
    write_scan(tmp_path / "a.zarr", layers=1, size=8)
    run = Library(tmp_path).run("a.zarr")

    def enlarge(metadata):
        arrays = metadata["consolidated_metadata"]["metadata"]
        arrays["spectra/matrix"]["shape"] = [MOST_MATRICES + 1]

    rewrite(tmp_path / "a.zarr", enlarge)
    with pytest.raises(InputError, match="says it has 50001 matrices"):
        run.tree()


def test_what_many_ask_for_is_computed_once():
    memory, made = Memory(), []

    def slow():
        made.append(1)
        time.sleep(0.1)
        return 7

    found = []
    threads = [
        threading.Thread(target=lambda: found.append(memory.get("a", 1, slow))) for _ in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, made) == ([7] * 4, [1])


def test_memory_has_an_upper_bound_and_forgets_failures():
    memory = Memory(most=10_000)
    for number in range(100):
        memory.get(number, 1, lambda: np.zeros(100))
    assert memory._kept.currsize <= 10_000
    memory.get("large", 1, lambda: np.zeros(10_000))
    assert "large" not in memory._kept
    with pytest.raises(ZeroDivisionError):
        memory.get("fails", 1, lambda: 1 / 0)
    assert memory.get("fails", 1, lambda: 3) == 3


def test_of_a_key_the_latest_stamp_is_kept():
    memory = Memory()
    assert [memory.get("a", stamp, lambda s=stamp: s) for stamp in (1, 2, 2)] == [1, 2, 2]
    assert (len(memory._kept), memory.get("a", 2, lambda: 7), memory.get("a", 1, lambda: 7)) == (
        1, 2, 7,
    )  # fmt: skip


def test_a_command_names_a_store_as_it_is_typed_where_the_dashboard_was_started(
    folder, tmp_path, monkeypatch
):
    run = Library(folder).run("scan.zarr")
    monkeypatch.chdir(folder.parent)
    assert run.address == f"{folder.name}/scan.zarr"
    monkeypatch.chdir(tmp_path)
    assert run.address == "scan.zarr"  # paths of this machine are not shown
