"""Scans: every matrix of a checkpoint, exactly, whatever interrupts them."""

import json
import os
import signal
import time

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from safetensors.torch import load_file, save_file

import spectra
from spectra.cli import main
from spectra.scanning import engines, scan
from spectra.scanning.row import Row
from spectra.scanning.scan import IncompleteError, run_scan
from spectra.store.files import DurableStore
from spectra.store.metadata import consolidate
from spectra.store.schema import Status
from spectra_data.errors import InputError
from tests.forked import Forked
from tests.small import small_llama
from tests.spectra.checkpoints import rewritten, saved, sharded
from tests.spectra.damage import without_checksums

Q = "model.layers.0.self_attn.q_proj"


class StopError(Exception):
    pass


def weights(run):
    return run["spectra"].weight.isel(step=-1).to_numpy()


def test_a_scan_has_the_singular_values_of_every_matrix(tmp_path):
    saved(tmp_path / "model")
    run = spectra.scan(tmp_path / "model", tmp_path / "a.zarr")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert run.attrs["kind"] == "scan"
    assert run["spectra"].sizes["matrix"] == 14
    for i, name in enumerate(run["spectra"].matrix.to_numpy()):
        exact = torch.linalg.svdvals(tensors[f"{name}.weight"].double()).numpy()
        np.testing.assert_allclose(weights(run)[i, : len(exact)], exact, rtol=1e-6)
        assert np.isnan(weights(run)[i, len(exact) :]).all()
    assert spectra.verify(tmp_path / "a.zarr").whole


def test_plain_xarray_reads_a_scan_without_a_warning(tmp_path, recwarn):
    saved(tmp_path / "model")
    spectra.scan(tmp_path / "model", tmp_path / "a.zarr")
    recwarn.clear()
    tree = xr.open_datatree(tmp_path / "a.zarr", engine="zarr")
    assert tree["spectra"].weight.dims == ("step", "matrix", "index")
    assert not recwarn.list


def test_everything_that_reads_a_run_reads_a_scan(tmp_path, shared):
    run = spectra.scan(shared / "data" / "checkpoints" / "stories260K", tmp_path / "a.zarr")
    assert spectra.metrics_table(run).stable_rank.notnull().all()
    spectra.write_report(tmp_path / "a.zarr", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "stories260K: spectra of its weights" in page
    assert "10 tensors not the weight of a linear layer" in page


def test_a_model_in_memory_and_its_checkpoint_give_the_same(tmp_path):
    model = saved(tmp_path / "model")
    one = spectra.scan(model, tmp_path / "a.zarr")
    other = spectra.scan(tmp_path / "model", tmp_path / "b.zarr")
    np.testing.assert_array_equal(weights(one), weights(other))
    hashes = [next(iter(run.attrs["checkpoints"].values()))["sha256"] for run in (one, other)]
    assert hashes[0] == hashes[1]


def test_a_folder_of_steps_becomes_one_store(tmp_path):
    for step in (300, 20):
        saved(tmp_path / "run" / f"step-{step}", seed=step)
    run = spectra.scan(tmp_path / "run", tmp_path / "a.zarr")
    assert run["spectra"].step.to_numpy().tolist() == [20, 300]
    one = spectra.scan(tmp_path / "run" / "step-20", tmp_path / "b.zarr")
    np.testing.assert_array_equal(run["spectra"].weight[0], one["spectra"].weight[0])
    assert one["spectra"].step.to_numpy().tolist() == [20]


def test_checkpoints_of_other_shapes_are_no_series(tmp_path):
    saved(tmp_path / "run" / "step-1")
    saved(tmp_path / "run" / "step-2", intermediate_size=64)
    with pytest.raises(InputError, match=r"other matrices than the first.*: with model.*64"):
        spectra.scan(tmp_path / "run", tmp_path / "a.zarr")
    assert spectra.open(tmp_path / "a.zarr")["spectra"].step.to_numpy().tolist() == [1]


def test_a_store_of_something_else_is_not_touched(tmp_path, store):
    saved(tmp_path / "model")
    with pytest.raises(InputError, match="is a training run"):
        spectra.scan(tmp_path / "model", store)
    spectra.scan(tmp_path / "model", tmp_path / "a.zarr")
    saved(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=r"holds .*model, not .*other, at step 0"):
        spectra.scan(tmp_path / "other", tmp_path / "a.zarr")


def test_a_series_is_never_cut_short(tmp_path):
    for step in (1, 5, 9):
        saved(tmp_path / "run" / f"step-{step}", seed=step)
    run = [str(tmp_path / "run" / f"step-{step}") for step in (1, 5, 9)]
    spectra.scan([run[0], run[2]], tmp_path / "a.zarr")
    assert run_scan(run[0], tmp_path / "a.zarr").decomposed == 0  # it is there
    with pytest.raises(InputError, match="already holds step 9"):
        run_scan(run, tmp_path / "a.zarr")
    saved(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="already holds step 9"):
        run_scan(tmp_path / "other", tmp_path / "a.zarr")
    assert spectra.open(tmp_path / "a.zarr")["spectra"].step.to_numpy().tolist() == [1, 9]


def test_a_checkpoint_is_known_by_its_weights_not_by_its_name(tmp_path, monkeypatch):
    saved(tmp_path / "model")
    spectra.scan(tmp_path / "model", tmp_path / "a.zarr")
    monkeypatch.chdir(tmp_path)
    assert run_scan("model", "a.zarr").decomposed == 0  # by another path
    (tmp_path / "model").rename(tmp_path / "moved")
    assert run_scan("moved", "a.zarr").decomposed == 0
    saved(tmp_path / "moved", seed=3)
    with pytest.raises(InputError, match="at step 0: write to another store"):
        run_scan("moved", "a.zarr")
    model = small_llama()
    spectra.scan(model, tmp_path / "b.zarr")
    assert run_scan(model, tmp_path / "b.zarr").decomposed == 0
    with pytest.raises(InputError, match="holds LlamaForCausalLM as it was then"):
        run_scan(small_llama(seed=1), tmp_path / "b.zarr")


def test_an_exact_scan_and_an_approximate_one_do_not_mix(tmp_path):
    saved(tmp_path / "model")
    spectra.scan(tmp_path / "model", tmp_path / "a.zarr", approximate=True)
    with pytest.raises(InputError, match="another errors"):
        run_scan(tmp_path / "model", tmp_path / "a.zarr")


def test_a_file_that_changed_in_between_is_scanned_anew(tmp_path, monkeypatch):
    saved(tmp_path / "model")
    decompose, calls = engines.decompose, []

    def counted(matrix, weight, how):
        calls.append(matrix.name)
        if len(calls) == 6:
            raise StopError
        return decompose(matrix, weight, how)

    monkeypatch.setattr(engines, "decompose", counted)
    with pytest.raises(StopError):
        run_scan(tmp_path / "model", tmp_path / "a.zarr")
    saved(tmp_path / "model", seed=1)
    assert run_scan(tmp_path / "model", tmp_path / "a.zarr").decomposed == 14
    whole = spectra.scan(tmp_path / "model", tmp_path / "b.zarr")
    np.testing.assert_array_equal(weights(spectra.open(tmp_path / "a.zarr")), weights(whole))


def test_what_is_wrong_beside_the_matrices_is_told_and_costs_none(tmp_path, capsys):
    sharded(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["score.weight"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))
    arguments = ["scan", str(tmp_path / "model"), "--out", str(tmp_path / "a.zarr")]
    assert main(arguments) == 1
    assert "lacks score.weight, which" in capsys.readouterr().err
    assert spectra.allocate(spectra.open(tmp_path / "a.zarr"), err=0.5).err == 0.5


def test_a_missing_shard_without_an_index_makes_no_store(tmp_path, capsys):
    sharded(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors.index.json").unlink()
    shard = tmp_path / "model" / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    arguments = ["scan", str(tmp_path / "model"), "--out", str(tmp_path / "a.zarr")]
    assert main(arguments) == 2
    assert "model-00002-of-00003.safetensors is missing" in capsys.readouterr().err
    assert not (tmp_path / "a.zarr").exists()
    shard.write_bytes(content)
    assert main(arguments) == 0


def test_a_store_is_whole_after_every_single_write(tmp_path, monkeypatch):
    saved(tmp_path / "model")
    place, seen = tmp_path / "a.zarr", []
    put = DurableStore.set_sync

    def watched(self, key, value):
        put(self, key, value)
        if place.exists():
            seen.append((key, spectra.verify(place).problems))

    monkeypatch.setattr(DurableStore, "set_sync", watched)
    spectra.scan(tmp_path / "model", place)
    assert len(seen) > 5
    assert not [entry for entry in seen if entry[1] not in ((), ("it holds no snapshot",))]


# what interrupts a scan costs no matrix that was done


def test_an_interrupted_scan_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    sharded(tmp_path / "model")
    calls = []
    decompose = engines.decompose

    def counted(matrix, weight, how):
        calls.append(matrix.name)
        if len(calls) == 6:
            raise StopError
        return decompose(matrix, weight, how)

    monkeypatch.setattr(engines, "decompose", counted)
    monkeypatch.setattr(engines, "available_cores", lambda: 1)
    with pytest.raises(StopError):
        run_scan(tmp_path / "model", tmp_path / "a.zarr")
    assert spectra.open(tmp_path / "a.zarr")["spectra"].sizes["step"] == 0
    first = calls[:5]
    calls[:] = [""] * 100
    summary = run_scan(tmp_path / "model", tmp_path / "a.zarr")
    again = [name for name in calls if name]
    assert summary.decomposed == len(again) <= 9
    assert not set(first) & set(again)
    whole = spectra.scan(tmp_path / "model", tmp_path / "b.zarr")
    np.testing.assert_array_equal(weights(spectra.open(tmp_path / "a.zarr")), weights(whole))
    assert run_scan(tmp_path / "model", tmp_path / "a.zarr").decomposed == 0


def scanned_slowly(run, *arguments):
    """A scan that says which matrices it has written."""
    decompose, add = engines.decompose, Row.add

    def slow(matrix, weight, how):
        time.sleep(0.2)
        return decompose(matrix, weight, how)

    def told(row, spectrum):
        add(row, spectrum)
        row.flush()
        print(spectrum.matrix.name, flush=True)

    engines.decompose, Row.add = slow, told
    return run(*arguments)


def test_a_killed_scan_keeps_every_matrix_that_was_written(tmp_path):
    sharded(tmp_path / "model")
    process = Forked(scanned_slowly, run_scan, tmp_path / "model", tmp_path / "a.zarr")
    done = [process.stdout.readline().strip() for _ in range(5)]
    process.kill()
    process.wait()
    assert all(done)
    seen = []
    summary = run_scan(
        tmp_path / "model", tmp_path / "a.zarr", progress=lambda _, n, of: seen.append(n)
    )
    assert seen[0] >= 5
    assert summary.decomposed <= 9
    whole = spectra.scan(tmp_path / "model", tmp_path / "b.zarr")
    np.testing.assert_array_equal(weights(spectra.open(tmp_path / "a.zarr")), weights(whole))
    assert spectra.verify(tmp_path / "a.zarr").whole


def test_a_full_disk_is_one_line_and_costs_what_was_not_written(tmp_path, monkeypatch, capsys):
    saved(tmp_path / "model")
    monkeypatch.setattr("spectra.scanning.row.SECONDS", -1.0)
    put, count = DurableStore.set_sync, []

    def full(self, key, value):
        if key.startswith("status/code/c"):
            count.append(key)
        if len(count) > 4:
            raise OSError(28, "No space left on device")
        put(self, key, value)

    monkeypatch.setattr(DurableStore, "set_sync", full)
    arguments = ["scan", str(tmp_path / "model"), "--out", str(tmp_path / "a.zarr")]
    assert main(arguments) == 2
    assert "No space left on device; what was done is kept" in capsys.readouterr().err
    monkeypatch.undo()
    assert 0 < run_scan(tmp_path / "model", tmp_path / "a.zarr").decomposed < 14


def test_ctrl_c_says_so_and_leaves_a_store_to_go_on_with(tmp_path):
    sharded(tmp_path / "model")
    command = ["scan", str(tmp_path / "model"), "--out", str(tmp_path / "a.zarr")]
    process = Forked(scanned_slowly, main, command)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "spectra scan: interrupted" in errors
    assert "Traceback" not in errors
    assert run_scan(tmp_path / "model", tmp_path / "a.zarr").decomposed < 14


def test_a_missing_shard_keeps_the_others_and_comes_in_later(tmp_path, capsys):
    sharded(tmp_path / "model")
    shard = tmp_path / "model" / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    arguments = ["scan", str(tmp_path / "model"), "--out", str(tmp_path / "a.zarr")]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "model-00002-of-00003.safetensors is missing" in said
    assert "of 14 matrices are done and kept" in said
    with pytest.raises(IncompleteError) as caught:
        run_scan(tmp_path / "model", tmp_path / "a.zarr")
    assert any(Q in p or "model.layers" in p for p in caught.value.problems)
    shard.write_bytes(content)
    assert main(arguments) == 0
    whole = spectra.scan(tmp_path / "model", tmp_path / "b.zarr")
    np.testing.assert_array_equal(weights(spectra.open(tmp_path / "a.zarr")), weights(whole))


def test_a_truncated_file_keeps_what_lies_before_its_end(tmp_path):
    saved(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-5000])
    with pytest.raises(IncompleteError) as caught:
        run_scan(tmp_path / "model", tmp_path / "a.zarr")
    assert all("model.safetensors is truncated: " in p for p in caught.value.problems)
    file.write_bytes(content)
    summary = run_scan(tmp_path / "model", tmp_path / "a.zarr")
    assert 0 < summary.decomposed < 14


def test_weights_that_are_not_finite_are_named_and_the_rest_is_there(tmp_path, capsys):
    saved(tmp_path / "model")
    rewritten(tmp_path / "model", lambda tensors: tensors[f"{Q}.weight"][3].fill_(torch.nan))
    arguments = ["scan", str(tmp_path / "model"), "--out", str(tmp_path / "a.zarr")]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert f"model.safetensors: {Q}.weight holds a NaN or an infinity" in said
    assert main(arguments) == 1  # nothing to do, but it still is as it is
    assert "holds a NaN" in capsys.readouterr().err
    run = spectra.open(tmp_path / "a.zarr")
    missing = np.isnan(weights(run)).all(axis=1)
    assert run["spectra"].matrix.to_numpy()[missing].tolist() == [Q]
    assert spectra.verify(tmp_path / "a.zarr").whole
    with pytest.raises(InputError, match=f"no ranks for {Q}"):
        spectra.allocate(run, err=0.5)
    spectra.write_report(tmp_path / "a.zarr", tmp_path / "a.html")


RANGE = {
    "large": 1e300,
    "small": 1e-300,
    "beyond float32": 1e60,
    "beneath float32": 1e-60,
    "one": 1,
}


def checkpoint_of(folder, scales, dtype=torch.float64):
    """A checkpoint of one matrix a scale, each with the singular values scale, scale/2, …"""
    folder.mkdir()
    matrices = {
        f"model.layers.{i}.self_attn.q_proj.weight": torch.diag(
            scale * 0.5 ** torch.arange(32, dtype=torch.float64)
        ).to(dtype)
        for i, scale in enumerate(scales)
    }
    save_file(matrices, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def test_a_scan_has_the_range_of_float64_and_so_have_its_readers(tmp_path, capsys, recwarn):
    checkpoint_of(tmp_path / "model", RANGE.values())
    run = spectra.scan(tmp_path / "model", tmp_path / "a.zarr")
    expected = np.array(list(RANGE.values()))[:, None] * 0.5 ** np.arange(32)
    np.testing.assert_allclose(weights(run), expected, rtol=1e-12)
    assert run["status"].code.to_numpy().max() == 0
    assert spectra.verify(tmp_path / "a.zarr").whole
    table = spectra.metrics_table(run).isel(step=0, kind=0)
    for name in ("stable_rank", "alpha", "mp_spikes", "mp_soft_rank", "optimal_rank"):
        np.testing.assert_allclose(table[name], float(table[name][-1]), rtol=1e-9)
    assert np.isnan(table["x_min"].to_numpy()).tolist() == [True, True, False, False, False]
    for method in ("welore", "uniform", "alpha", "budget"):
        assert len(set(spectra.allocate(run, err=0.5, method=method).ranks.values())) == 1, method
    spectra.write_report(tmp_path / "a.zarr", tmp_path / "a.html")
    tree = xr.open_datatree(tmp_path / "a.zarr", engine="zarr")
    np.testing.assert_allclose(tree["spectra"].weight[0], expected, rtol=1e-12)
    assert [str(w) for w in recwarn.list if "overflow" in str(w.message)] == []


def test_a_matrix_of_the_largest_numbers_of_float32_is_measured(tmp_path):
    checkpoint_of(tmp_path / "model", [1.0], torch.float32)
    change = {f"{Q}.weight": torch.full((32, 32), 3e38)}
    rewritten(tmp_path / "model", lambda tensors: tensors.update(change))
    run = spectra.scan(tmp_path / "model", tmp_path / "a.zarr")
    assert weights(run)[0, 0] == pytest.approx(32 * 3e38)


def test_a_scan_of_float32_goes_on_and_holds_nothing_infinite(tmp_path, capsys):
    for step, scale in enumerate((1.0, 1e60, 1e-60)):
        checkpoint_of(tmp_path / f"step-{step}", [2.0, scale])
    place = tmp_path / "a.zarr"
    run_scan([str(tmp_path / "step-0")], place)
    root = zarr.open_group(place, mode="r+", use_consolidated=False)
    old = root["spectra/weight"]
    new = root.create_array("spectra/weight", shape=old.shape, chunks=old.chunks, dtype="float32",
                            fill_value=np.nan, dimension_names=("step", "matrix", "index"),
                            attributes=dict(old.attrs), overwrite=True)  # fmt: skip
    new[0] = np.tile(2 * np.float32(0.5) ** np.arange(32), (2, 1))
    consolidate(DurableStore(place))
    without_checksums(place)
    assert (
        main(["scan", *(str(tmp_path / f"step-{i}") for i in range(3)), "--out", str(place)]) == 1
    )
    said = capsys.readouterr().err
    assert said.count("has singular values that the store's numbers cannot hold") == 2
    run = spectra.open(place)
    assert run["spectra"].weight.dtype == np.float32
    codes = run["status"].code.to_numpy()[:, :, 0]
    assert codes.tolist() == [[0, 0], [0, Status.OUT_OF_RANGE], [0, Status.OUT_OF_RANGE]]
    assert np.isnan(run["spectra"].weight.to_numpy()).all(axis=2).tolist() == (codes > 0).tolist()
    assert spectra.verify(place).whole
    with pytest.raises(InputError, match="are beyond the numbers of the store"):
        spectra.allocate(run, err=0.5)


# processes, machines, approximation


@pytest.mark.parametrize(
    "how", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2)), "scheduler"]
)
def test_processes_of_a_cluster_give_the_same_bit_for_bit(tmp_path, how):
    sharded(tmp_path / "model")
    here = spectra.scan(tmp_path / "model", tmp_path / "a.zarr")
    if how != "scheduler":
        there = spectra.scan(tmp_path / "model", tmp_path / "b.zarr", workers=how)
    else:
        from distributed import LocalCluster

        with LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster:
            address = cluster.scheduler_address
            there = spectra.scan(tmp_path / "model", tmp_path / "b.zarr", scheduler=address)
    np.testing.assert_array_equal(weights(here), weights(there))


def test_a_scheduler_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "SCHEDULER_SECONDS", 1)
    saved(tmp_path / "model")
    with pytest.raises(InputError, match="no dask scheduler answers at tcp://127"):
        spectra.scan(tmp_path / "model", tmp_path / "a.zarr", scheduler="tcp://127.0.0.1:9")


def test_only_a_few_weights_are_in_memory_at_a_time(tmp_path, monkeypatch):
    tensors = {f"model.layers.{i}.a.weight": torch.randn(64, 64) for i in range(30)}
    save_file(tensors, tmp_path / "x.safetensors")
    alive, most = set(), []
    decompose = engines.decompose

    def slow(matrix, weight, how):
        time.sleep(0.02)
        found = decompose(matrix, weight, how)
        alive.discard(matrix.name)
        return found

    read = scan.Checkpoint.read_together

    def watched(self, group):
        for matrix, weight in read(self, group):
            alive.add(matrix.name)
            most.append(len(alive))
            yield matrix, weight

    monkeypatch.setattr(engines, "decompose", slow)
    monkeypatch.setattr(scan.Checkpoint, "read_together", watched)
    monkeypatch.setattr(engines, "available_cores", lambda: 2)
    run_scan(tmp_path / "x.safetensors", tmp_path / "a.zarr")
    assert max(most) <= 2 + engines.READ_AHEAD


def test_what_is_done_is_handed_on_while_the_next_are_decomposed(tmp_path, monkeypatch):
    tensors = {f"model.layers.{i}.a.weight": torch.randn(64, 64) for i in range(60)}
    save_file(tensors, tmp_path / "x.safetensors")
    decompose, decomposed = engines.decompose, []

    def counted(matrix, weight, how):
        decomposed.append(matrix.name)
        return decompose(matrix, weight, how)

    monkeypatch.setattr(engines, "decompose", counted)
    monkeypatch.setattr(engines, "available_cores", lambda: 2)
    ahead = []
    run_scan(
        tmp_path / "x.safetensors",
        tmp_path / "a.zarr",
        progress=lambda _, done, count: ahead.append(len(decomposed) - done),
    )
    assert max(ahead) <= 2 * (2 + engines.READ_AHEAD)


def test_an_approximate_scan_is_marked_as_such(tmp_path, capsys):
    torch.manual_seed(0)
    tensors = {f"model.layers.{i}.a.weight": torch.randn(600, 700) for i in range(2)}
    save_file(tensors, tmp_path / "x.safetensors")
    place = tmp_path / "a.zarr"
    assert (
        main(["scan", str(tmp_path / "x.safetensors"), "--out", str(place), "--approximate"]) == 0
    )
    assert "approximately, with error bars" in capsys.readouterr().out
    run = spectra.open(place)
    assert (run["spectra"].weight_error > 0).all()
    assert run["spectra"].weight.attrs["approximate"]
    made = spectra.allocate(run, err=0.5)
    assert made.approximate
    spectra.write_report(place, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "approximately, with error bars" in page
    assert "The singular values are approximate" in page
    assert main(["allocate", str(place), "--err", "0.5"]) == 0
    assert "approximate spectra" in capsys.readouterr().out
    assert spectra.metrics_table(run).attrs["approximate"]


# the command


def test_the_command_prints_one_json_object(tmp_path, capsys):
    saved(tmp_path / "model")
    assert main(["scan", str(tmp_path / "model"), "--out", str(tmp_path / "a.zarr"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["matrices"] == 14
    assert {"name", "reason"} == set(found["skipped"][0])
    assert found["seconds"] > 0
    assert found["peak_memory_bytes"] > 1e7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.zarr"], "name a checkpoint"),
        (["nowhere/at/all", "--out", "x.zarr"], "no checkpoint at nowhere/at/all"),
        (["MODEL", "--out", "x.zarr", "--workers", "0"], "at least 1 worker"),
        (["MODEL", "--out", "x.zarr", "--device", "tpu"], "no device 'tpu'"),
        (["MODEL", "--out", "model/config.json/x.zarr"], "cannot write model/config.json/x.zarr"),
        (["MODEL"], "--out is missing"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "model")
    given = [str(tmp_path / "model") if a == "MODEL" else a for a in arguments]
    assert main(["scan", *given]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert not os.path.exists("x.zarr")  # noqa: PTH110


def test_a_scan_of_many_experts_writes_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("spectra.store.layout.PIECE_BYTES", 4 * 64 * 4)
    saved(tmp_path / "model", "qwen3_moe")
    flushed = []
    flush = Row.flush
    monkeypatch.setattr(Row, "flush", lambda row: (flushed.append(1), flush(row)))
    run = spectra.scan(tmp_path / "model", tmp_path / "a.zarr")
    assert run["spectra"].weight.encoding["chunks"][1] < run["spectra"].sizes["matrix"]
    model = spectra.scan(small_llama(), tmp_path / "b.zarr")
    assert np.isfinite(weights(run)[:, 0]).all()
    assert np.isfinite(weights(model)[:, 0]).all()
    assert flushed
