"""The recorder: what it records, and what it leaves alone."""

import copy
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import spectra
from spectra.matrices import find_matrices
from spectra.recording.probe import probe_gradients, probe_sha256
from spectra.recording.start import record
from spectra.store.writer import StoreWriter
from spectra_data.errors import InputError
from tests.small import random_batch, small_llama, train


def optimizer_of(model, **changes):
    return torch.optim.AdamW(model.parameters(), **{"lr": 1e-2} | changes)


def parameters_of(model):
    return [weight.parameter for weight in find_matrices(model)[0].values()]


def recorded(path, steps=7, every=3, model=None, **options):
    model = model or small_llama()
    optimizer = optimizer_of(model)
    options = {"probe": random_batch(0), "sketch": 64, "steps": steps} | options
    with record(model, optimizer, path, every=every, **options) as recorder:
        train(model, optimizer, steps, recorder=recorder)
    return model, spectra.open(path)


def test_a_snapshot_holds_the_state_after_so_many_steps(tmp_path):
    model, run = recorded(tmp_path / "a.zarr")
    assert run["spectra"].step.values.tolist() == [0, 3, 6, 7]
    initial, parameters = small_llama(), find_matrices(model)[0]
    for row, state in ((0, initial), (-1, model)):
        for matrix, weight in find_matrices(state)[0].items():
            values = run["spectra"].weight.isel(step=row).sel(matrix=matrix.name).values
            expected = torch.linalg.svdvals(weight.value.double()).numpy()
            np.testing.assert_allclose(values[: matrix.full_rank], expected, rtol=1e-5, atol=1e-7)
            assert np.isnan(values[matrix.full_rank :]).all()
    assert run["spectra"].layer.values.tolist() == [m.layer for m in parameters]


def test_gradients_are_those_of_the_probe_batch(tmp_path):
    model, run = recorded(tmp_path / "a.zarr")
    probe = random_batch(0)
    model(input_ids=probe, labels=probe).loss.backward()
    for matrix, weight in find_matrices(model)[0].items():
        values = run["spectra"].gradient.isel(step=-1).sel(matrix=matrix.name).values
        expected = torch.linalg.svdvals(weight.of(weight.parameter.grad).double()).numpy()
        np.testing.assert_allclose(
            values[: matrix.full_rank], expected, rtol=1e-4, atol=1e-6 * expected[0]
        )


def test_updates_are_the_difference_that_the_last_step_made(tmp_path):
    model, run = recorded(tmp_path / "a.zarr")
    before = small_llama()
    train(before, optimizer_of(before), 6)
    assert np.isnan(run["spectra"]["update"].isel(step=0)).all()
    pairs = zip(find_matrices(before)[0].values(), find_matrices(model)[0].items(), strict=True)
    for old, (matrix, new) in pairs:
        values = run["spectra"]["update"].isel(step=-1).sel(matrix=matrix.name).values
        expected = torch.linalg.svdvals((new.value - old.value).double()).numpy()
        np.testing.assert_allclose(
            values[: matrix.full_rank], expected, rtol=1e-4, atol=1e-6 * expected[0]
        )


def test_training_is_the_same_bit_for_bit_with_the_recorder_on(tmp_path):
    model, _ = recorded(tmp_path / "a.zarr", every=2)
    state = torch.get_rng_state()
    alone = small_llama()
    train(alone, optimizer_of(alone), 7)
    for one, other in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_probe_leaves_gradients_modes_and_random_state_alone():
    model = small_llama(attention_dropout=0.5).train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    parameters = parameters_of(model)
    parameters[0].grad = torch.ones_like(parameters[0])
    seen = []
    parameters[1].register_hook(seen.append)
    parameters[2].requires_grad_(False)
    state = torch.get_rng_state()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        first = probe_gradients(model, random_batch(0), parameters)
    second = probe_gradients(torch.compile(model), random_batch(0), parameters)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)  # no dropout, no autocast
        assert one.dtype == torch.float32
    assert torch.equal(parameters[0].grad, torch.ones_like(parameters[0]))
    assert all(p.grad is None for p in parameters[1:])
    assert seen == []
    assert not parameters[2].requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes


def test_a_bfloat16_model_is_probed_in_float32():
    model = small_llama().bfloat16()
    parameters = parameters_of(model)
    expected = copy.deepcopy(model).float()
    batch = random_batch(0)
    expected(input_ids=batch, labels=batch).loss.backward()
    gradients = probe_gradients(model, batch, parameters)
    for gradient, parameter in zip(gradients, parameters_of(expected), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


def test_padding_takes_no_part_in_the_probe_loss():
    model = small_llama()
    parameters = parameters_of(model)
    batch = random_batch(0)
    mask = torch.ones_like(batch)
    mask[:, 10:] = 0
    padded = probe_gradients(model, {"input_ids": batch, "attention_mask": mask}, parameters)
    shorter = probe_gradients(model, batch[:, :10], parameters)
    for one, other in zip(padded, shorter, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_the_probe_can_be_a_function_of_the_model(tmp_path):
    batch = random_batch(0)

    def loss(model):
        return model(input_ids=batch, labels=batch).loss

    _, run = recorded(tmp_path / "a.zarr", probe=loss)
    _, expected = recorded(tmp_path / "b.zarr")
    np.testing.assert_array_equal(run["spectra"].gradient, expected["spectra"].gradient)
    assert run.attrs["probe_sha256"] is None
    assert expected.attrs["probe_sha256"] == probe_sha256(batch)
    with pytest.raises(InputError, match="no scalar loss"):
        probe_gradients(small_llama(), lambda model: model(input_ids=batch).logits, [])


def test_a_matrix_that_the_loss_does_not_reach_is_nan(tmp_path):
    class Unused(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])

        def forward(self, x):
            return self.blocks[0](x).square().mean()

    model = Unused()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model, optimizer, tmp_path / "a.zarr", probe={"x": torch.ones(2, 4)}, every=1):
        for _ in range(2):
            model(torch.ones(2, 4)).backward()
            optimizer.step()
    gradient = spectra.open(tmp_path / "a.zarr")["spectra"].gradient
    assert np.isfinite(gradient.sel(matrix="blocks.0")).all()
    assert np.isnan(gradient.sel(matrix="blocks.1")).all()
    assert spectra.verify(tmp_path / "a.zarr").whole


def test_without_a_probe_weights_and_updates_are_recorded(tmp_path):
    _, run = recorded(tmp_path / "a.zarr", probe=None)
    assert set(run["spectra"].data_vars) == {"weight", "update"}
    assert "sketches" not in run.children
    assert spectra.verify(tmp_path / "a.zarr").whole


def test_a_run_of_unknown_length_grows_by_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("spectra.store.layout.BLOCK", 4)
    monkeypatch.setattr("spectra.store.writer.BLOCK", 4)
    _, known = recorded(tmp_path / "a.zarr", steps=10, every=1)
    path = tmp_path / "c.zarr"
    model = small_llama()
    optimizer = optimizer_of(model)
    with record(model, optimizer, path, probe=random_batch(0), every=1, sketch=64) as recorder:
        train(model, optimizer, 10, recorder=recorder)
    grown = spectra.open(path)
    assert grown["spectra"].sizes["step"] == 11
    for name in ("weight", "gradient", "update"):
        np.testing.assert_array_equal(grown["spectra"][name], known["spectra"][name])
    assert spectra.verify(path).whole


def test_training_metrics_are_stored_with_their_step(store):
    rows = spectra.open(store)["train"].to_dataset().compute()
    assert rows.train_step.values.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert np.isfinite(rows.loss).all()
    assert rows.tokens.values.tolist() == [64 * n for n in range(1, 8)]
    assert rows.learning_rate.values.tolist() == [1e-2] * 7
    assert np.isnan(rows.validation_loss.values).tolist() == [True] * 6 + [False]
    assert (rows.tokens_per_second.values[1:] > 0).all()


@pytest.mark.parametrize("stop", [3, 5])
def test_a_resumed_recording_equals_an_uninterrupted_one(tmp_path, stop):
    _, whole = recorded(tmp_path / "whole.zarr", steps=9)
    path, probe = tmp_path / "resumed.zarr", random_batch(0)
    model = small_llama()
    optimizer = optimizer_of(model)
    options = {"probe": probe, "every": 3, "steps": 9, "sketch": 64}
    with record(model, optimizer, path, **options) as recorder:
        train(model, optimizer, stop, recorder=recorder)
        saved = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
        train(model, optimizer, 2, first=stop, recorder=recorder)  # lost with the process
    model = small_llama(seed=1)
    optimizer = optimizer_of(model)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    with record(model, optimizer, path, **options, start_step=stop, resume=True) as recorder:
        train(model, optimizer, 9 - stop, first=stop, recorder=recorder)
    resumed = spectra.open(path)
    for group in ("spectra", "sketches", "train"):
        for name, array in whole[group].data_vars.items():
            if name != "tokens_per_second":
                np.testing.assert_array_equal(resumed[group][name], array, err_msg=name)
    assert spectra.verify(path).whole


def test_a_store_of_another_run_is_not_gone_on_with(tmp_path):
    path = tmp_path / "a.zarr"
    recorded(path)
    model = small_llama()

    def resume(**changes):
        options = {"probe": random_batch(0), "every": 3, "steps": 7, "sketch": 64}
        record(model, optimizer_of(model), path, **options | changes, resume=True)

    with pytest.raises(InputError, match="another probe batch"):
        resume(probe=random_batch(1))
    with pytest.raises(InputError, match="another sketch: 64, not 32"):
        resume(sketch=32)
    with pytest.raises(InputError, match=r"another schedule: steps \d+, not 70;"):
        resume(steps=70)
    with pytest.raises(InputError, match="exists already"):
        record(model, optimizer_of(model), path, probe=None)


def test_a_store_that_cannot_be_written_stops_the_recorder_but_not_training(tmp_path, monkeypatch):
    path = tmp_path / "a.zarr"
    model = small_llama()
    optimizer = optimizer_of(model)
    recorder = record(model, optimizer, path, probe=random_batch(0), every=2, steps=6, sketch=64)
    train(model, optimizer, 3, recorder=recorder)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("spectra.store.files.write_file", full)
        with pytest.warns(RuntimeWarning, match="stopped at step 4: .*No space left"):
            train(model, optimizer, 3, first=3, recorder=recorder)
    recorder.close()
    alone = small_llama()
    train(alone, optimizer_of(alone), 6)
    assert torch.equal(model.lm_head.weight, alone.lm_head.weight)
    assert spectra.open(path)["spectra"].step.values.tolist() == [0, 2]
    assert spectra.verify(path).whole


@pytest.mark.parametrize("error", [np.linalg.LinAlgError("no convergence"), MemoryError()])
def test_no_failure_of_recording_ends_training(tmp_path, monkeypatch, error):
    model = small_llama()
    optimizer = optimizer_of(model)
    recorder = record(model, optimizer, tmp_path / "a.zarr", probe=random_batch(0), every=2)

    def failing(*args, **kwargs):
        raise error

    monkeypatch.setattr("spectra.recording.measure.singular_values_of_many", failing)
    with pytest.warns(RuntimeWarning, match=f"stopped at step 0: {type(error).__name__}"):
        train(model, optimizer, 3, recorder=recorder)
    recorder.close()
    alone = small_llama()
    train(alone, optimizer_of(alone), 3)
    assert torch.equal(model.lm_head.weight, alone.lm_head.weight)


UNCLOSED = """
import sys, torch
import spectra

def run():
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
    optimizer = torch.optim.AdamW(model.parameters())
    loss = lambda model: model.blocks[1](model.blocks[0](torch.ones(2, 4))).square().mean()
    spectra.record(model, optimizer, sys.argv[1], probe=loss, every=5)
    for _ in range(9):
        loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer

optimizer = run()
if sys.argv[2] == "fails":
    raise SystemExit(3)
"""


@pytest.mark.parametrize("end", ["fails", pytest.param("returns", marks=pytest.mark.slow)])
def test_a_script_that_never_closes_its_recorder_loses_nothing(tmp_path, end):
    arguments = [sys.executable, "-c", UNCLOSED, str(tmp_path / "a.zarr"), end]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.stderr == ""
    run = spectra.open(tmp_path / "a.zarr")
    assert run["train"].train_step.values.tolist() == list(range(1, 10))
    assert run["spectra"].step.values.tolist() == [0, 5]


def test_the_probe_recomputes_activations_where_training_does(tmp_path):
    model = small_llama(attention_dropout=0.5).train()
    parameters = parameters_of(model)
    expected = probe_gradients(model, random_batch(0), parameters)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    forwards = []
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *args: forwards.append(1))
    for one, other in zip(
        probe_gradients(model, random_batch(0), parameters), expected, strict=True
    ):
        assert torch.equal(one, other)
    assert len(forwards) == 2  # once forward, once again for the backward pass
    assert all(module.training for module in model.modules())


def test_strict_lets_a_full_disk_stop_training(tmp_path, monkeypatch):
    model = small_llama()
    optimizer = optimizer_of(model)
    record(model, optimizer, tmp_path / "a.zarr", probe=None, every=1, strict=True)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StoreWriter, "write_snapshot", full)
    with pytest.raises(OSError, match="No space left"):
        train(model, optimizer, 1)


def test_metrics_are_numbers_with_known_names(tmp_path):
    model = small_llama()
    optimizer = optimizer_of(model)
    with record(model, optimizer, tmp_path / "a.zarr", probe=None, every=5) as recorder:
        batch = random_batch(0)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        recorder.log(loss=loss)
        with pytest.raises(InputError, match="no training metric 'accuracy'; there are: loss"):
            recorder.log(accuracy=3)
        with pytest.raises(InputError, match="the metric loss is a number, not 'high'"):
            recorder.log(loss="high")
        optimizer.step()
    assert spectra.open(tmp_path / "a.zarr")["train"].loss.values.tolist() == [loss.item()]


def test_what_cannot_be_recorded_is_refused_at_once(tmp_path):
    model, other = small_llama(), small_llama()
    path = tmp_path / "a.zarr"
    with pytest.raises(InputError, match="updates no parameter of this model"):
        record(model, optimizer_of(other), path, probe=None)
    with pytest.raises(InputError, match=r"a probe is token ids, .* not a str"):
        record(model, optimizer_of(model), path, probe="hello")
    with pytest.raises(InputError, match="at least 0 components"):
        record(model, optimizer_of(model), path, probe=None, sketch=-3)
    assert not path.exists()


def test_closing_lets_go_of_the_optimizer(tmp_path):
    model = small_llama()
    optimizer = optimizer_of(model)
    with record(model, optimizer, tmp_path / "a.zarr", probe=None, every=1):
        train(model, optimizer, 1)
    train(model, optimizer, 2, first=1)
    assert spectra.open(tmp_path / "a.zarr")["spectra"].step.values.tolist() == [0, 1]


def test_recording_warns_about_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorded(tmp_path / "a.zarr", steps=3, every=1)


def test_a_run_longer_than_it_said_is_recorded_and_resumed(tmp_path):
    path = tmp_path / "a.zarr"
    model = small_llama()
    optimizer = optimizer_of(model)
    options = {"probe": random_batch(0), "every": 1, "steps": 4, "sketch": 64}
    with record(model, optimizer, path, **options) as recorder:
        train(model, optimizer, 6, recorder=recorder)
    with record(model, optimizer, path, **options, start_step=6, resume=True) as recorder:
        train(model, optimizer, 1, first=6, recorder=recorder)
    assert spectra.open(path)["spectra"].step.values.tolist() == list(range(8))


def test_a_relative_store_stays_where_it_was_made(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    model = small_llama()
    optimizer = optimizer_of(model)
    with record(model, optimizer, "a.zarr", probe=None, every=1) as recorder:
        monkeypatch.chdir(tmp_path / "elsewhere")
        train(model, optimizer, 2, recorder=recorder)
    assert recorder.stopped is None
    assert spectra.open(tmp_path / "a.zarr")["spectra"].step.values.tolist() == [0, 1, 2]


def test_attributes_that_json_cannot_hold_are_refused(tmp_path):
    model = small_llama()
    with pytest.raises(InputError, match="attrs= cannot be written as JSON"):
        record(model, optimizer_of(model), tmp_path / "a.zarr", probe=None, attrs={"x": object()})
    assert not (tmp_path / "a.zarr").exists()
