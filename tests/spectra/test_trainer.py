"""The callback in a real Trainer."""

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

import spectra
from tests.small import random_batch, small_llama, small_model


def run(folder, callbacks, *, model=None, resume=None, **changes):
    model = model or small_llama()
    batch = random_batch(7, windows=64)
    dataset = [{"input_ids": window, "labels": window} for window in batch]
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.5,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 3,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
    }
    arguments = TrainingArguments(str(folder / "out"), **settings | changes)
    trainer = Trainer(model, arguments, train_dataset=dataset, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def callback(path, **options):
    kinds = ("weight", "gradient", "training_gradient", "update")
    defaults = {"probe": random_batch(0), "every": 2, "sketch": 64, "spectra": kinds}
    return spectra.TrainerCallback(path, **defaults | options)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_trainer_trains_the_same_with_the_callback(tmp_path, family):
    recording = callback(tmp_path / "a.zarr")
    one = run(tmp_path / "one", [recording], model=small_model(family))
    other = run(tmp_path / "other", [], model=small_model(family))
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    store = spectra.open(tmp_path / "a.zarr")
    assert store["spectra"].step.values.tolist() == [0, 2, 4, 6]
    train = store["train"]
    logged = [entry for entry in one.state.log_history if "loss" in entry]
    assert train.train_step.values.tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(train.loss, [entry["loss"] for entry in logged], atol=1e-4)
    np.testing.assert_allclose(
        train.gradient_norm, [float(entry["grad_norm"]) for entry in logged], rtol=1e-5
    )
    np.testing.assert_allclose(train.clip_factor, 0.5 / train.gradient_norm, rtol=1e-4)
    assert spectra.verify(tmp_path / "a.zarr").whole


def test_the_callback_sees_gradients_whole_and_unclipped(tmp_path):
    for name, norm in (("clipped", 0.05), ("free", 0.0)):
        recording = callback(tmp_path / f"{name}.zarr", every=1)
        run(tmp_path / name, [recording], max_grad_norm=norm, max_steps=1)
    clipped, free = (spectra.open(tmp_path / f"{name}.zarr") for name in ("clipped", "free"))
    one, other = (s["spectra"].training_gradient.sel(step=1) for s in (clipped, free))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)
    factor, before = (clipped["train"][name].values[0] for name in ("clip_factor", "gradient_norm"))
    assert factor < 0.1
    assert factor * before == pytest.approx(0.05, rel=1e-4)


def test_a_resumed_trainer_goes_on_with_the_store(tmp_path):
    run(tmp_path / "whole", [callback(tmp_path / "whole.zarr")])
    path = tmp_path / "a.zarr"
    trainer = run(tmp_path, [callback(path)])
    assert trainer.state.global_step == 6
    checkpoint = str(tmp_path / "out/checkpoint-3")
    run(tmp_path, [callback(path)], model=small_llama(seed=1), resume=checkpoint)
    whole, resumed = spectra.open(tmp_path / "whole.zarr"), spectra.open(path)
    for name in ("weight", "gradient", "update", "training_gradient"):
        np.testing.assert_array_equal(whole["spectra"][name], resumed["spectra"][name])
    np.testing.assert_array_equal(whole["train"].loss, resumed["train"].loss)
    assert spectra.verify(path).whole
