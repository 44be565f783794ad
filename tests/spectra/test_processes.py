"""Several processes record what one would."""

import re
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import spectra
from spectra.matrices import find_matrices
from spectra.recording.processes import Processes
from tests.forked import Forked
from tests.small import small_llama
from tests.spectra.parallel_run import main, take_part


def torchrun(*arguments):
    """Two processes as torchrun starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "-m", "tests.spectra.parallel_run"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=200
    )


def together(*arguments):
    """Two forked processes with the environment that torchrun gives them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = [str(argument) for argument in arguments]
    started = [Forked(take_part, rank, 2, port, *given) for rank in range(2)]
    said = [process.communicate() for process in started]
    return SimpleNamespace(
        returncode=max(abs(process.returncode) for process in started),
        stdout="".join(out for out, _ in said),
        stderr="".join(errors for _, errors in said),
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    store = tmp_path_factory.mktemp("alone") / "a.zarr"
    main("alone", store)
    return spectra.open(store)


@pytest.mark.parametrize(
    ("setup", "start"),
    [
        pytest.param("ddp", torchrun, marks=pytest.mark.slow),
        ("ddp", together),
        ("fsdp", together),
        pytest.param("copies", together, marks=pytest.mark.slow),
    ],
)
def test_two_processes_record_the_same_as_one(tmp_path, alone, setup, start):
    store = tmp_path / "a.zarr"
    result = start(setup, store)
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
    result = together("fsdp in bfloat16", store)
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
    result = together("failing", tmp_path / "a.zarr", rank)
    assert result.returncode == 0, result.stderr
    for each in (0, 1):
        expected = f"rank {each} made 4 steps; recording stopped at step 3: .*No space left"
        assert re.search(expected, result.stdout), result.stdout
    assert spectra.open(tmp_path / "a.zarr")["spectra"].step.values.tolist() == [0, 1, 2]
    assert spectra.verify(tmp_path / "a.zarr").whole


def test_recording_in_only_one_of_several_processes_is_refused_and_does_not_hang(tmp_path):
    result = together("lonely", tmp_path / "a.zarr")
    assert "refused: only some of the 2 processes record: call spectra.record in" in result.stdout
    assert not (tmp_path / "a.zarr").exists()


def test_different_probe_batches_are_refused(tmp_path):
    result = together("different", tmp_path / "a.zarr")
    assert result.stdout.count("refused: the processes have different probe batches") == 2
    assert not (tmp_path / "a.zarr").exists()
