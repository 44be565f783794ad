"""Several processes record what one would."""

import re
import subprocess
import sys

import numpy as np
import pytest

import spectra
from spectra.matrices import find_matrices
from spectra.recording.processes import Processes
from tests.small import small_llama
from tests.spectra.parallel_run import main


def torchrun(processes, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", "tests.spectra.parallel_run"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=200
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    store = tmp_path_factory.mktemp("alone") / "a.zarr"
    main("alone", store)
    return spectra.open(store)


@pytest.mark.parametrize("setup", ["ddp", "fsdp", "copies"])
def test_two_processes_record_the_same_as_one(tmp_path, alone, setup):
    store = tmp_path / "a.zarr"
    result = torchrun(2, setup, store)
    assert result.returncode == 0, result.stderr
    assert "rank 0 measured 7 of 14" in result.stdout  # and the other the other seven
    assert "rank 1 measured 7 of 14" in result.stdout
    assert spectra.verify(store).whole
    run = spectra.open(store)
    assert run["spectra"].step.values.tolist() == [0, 2, 4, 5]
    for name in ("weight", "gradient", "training_gradient", "update"):
        one, other = run["spectra"][name].values, alone["spectra"][name].values
        largest = np.nanmax(other, axis=2, keepdims=True)
        np.testing.assert_allclose(one / largest, other / largest, atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(run["status"].code, alone["status"].code)
    for name in ("gradient_norm", "clip_factor", "learning_rate"):
        np.testing.assert_allclose(run["train"][name], alone["train"][name], rtol=1e-4)
    for group in (n for n in alone.groups if n.startswith("/gradients/")):
        one, other = run[group].gradient.values, alone[group].gradient.values
        np.testing.assert_allclose(one, other, atol=0.02 * np.abs(other).max())
    np.testing.assert_allclose(
        run["sketches"].gradient, alone["sketches"].gradient, atol=1e-4, rtol=1e-3
    )


def test_the_store_says_in_which_precision_sharded_gradients_were_computed(tmp_path, alone):
    store = tmp_path / "a.zarr"
    result = torchrun(2, "fsdp in bfloat16", store)
    assert result.returncode == 0, result.stderr
    run = spectra.open(store)
    assert run.attrs["probe_precision"] == "bfloat16"
    assert alone.attrs["probe_precision"] == "float32"
    one, other = (r["spectra"].gradient.isel(step=0, index=0).values for r in (run, alone))
    np.testing.assert_allclose(one, other, rtol=0.05)


def test_work_is_divided_evenly_and_wholly():
    matrices = list(find_matrices(small_llama())[0])
    shares = []
    for rank in range(3):
        processes = Processes()
        processes.rank, processes.count = rank, 3
        shares.append(processes.own(matrices))
    assert sorted(number for share in shares for number in share) == list(range(14))
    assert {len(share) for share in shares} <= {4, 5}


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_stops_the_recorder_in_all_and_hangs_none(tmp_path, rank):
    result = torchrun(2, "failing", tmp_path / "a.zarr", rank)
    assert result.returncode == 0, result.stderr
    for each in (0, 1):
        expected = f"rank {each} made 4 steps; recording stopped at step 3: .*No space left"
        assert re.search(expected, result.stdout), result.stdout
    assert spectra.open(tmp_path / "a.zarr")["spectra"].step.values.tolist() == [0, 1, 2]
    assert spectra.verify(tmp_path / "a.zarr").whole


def test_recording_in_only_one_of_several_processes_is_refused_and_does_not_hang(tmp_path):
    result = torchrun(2, "lonely", tmp_path / "a.zarr")
    assert "refused: only some of the 2 processes record: call spectra.record in" in result.stdout
    assert not (tmp_path / "a.zarr").exists()


def test_different_probe_batches_are_refused(tmp_path):
    result = torchrun(2, "different", tmp_path / "a.zarr")
    assert result.stdout.count("refused: the processes have different probe batches") == 2
    assert not (tmp_path / "a.zarr").exists()
