"""What cannot be recorded is told before training begins, and leaves nothing behind."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import spectra
from spectra_data.errors import InputError
from tests.small import random_batch, small_llama

BATCH = random_batch(0)


class NanoGPT(nn.Module):
    """A model that takes (idx, targets) and returns (logits, loss)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(64, 16)
        self.h = nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(16, 16)}) for _ in range(2)])
        self.out = nn.Linear(16, 64)

    def forward(self, idx, targets=None):
        x = self.embedding(idx)
        for block in self.h:
            x = x + block["fc"](x)
        logits = self.out(x)
        loss = None
        if targets is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss


def adam(model):
    return torch.optim.AdamW(model.parameters(), 1e-3)


def gradients(tmp_path, name, probe):
    model = NanoGPT()
    optimizer = adam(model)
    with spectra.record(model, optimizer, tmp_path / name, probe=probe, every=1):
        model(BATCH, BATCH)[1].backward()
        optimizer.step()
    return spectra.open(tmp_path / name)["spectra"].gradient.values


def test_a_loss_in_a_tuple_and_batches_in_order_are_understood(tmp_path):
    by_name = gradients(tmp_path, "a.zarr", {"idx": BATCH, "targets": BATCH})
    in_order = gradients(tmp_path, "b.zarr", (BATCH, BATCH))
    function = gradients(tmp_path, "c.zarr", lambda model: model(BATCH, BATCH)[1])
    both = gradients(tmp_path, "d.zarr", lambda model: model(BATCH, BATCH))
    assert len(by_name) == 2
    assert torch.isfinite(torch.from_numpy(by_name[0, :, 0])).all()
    for other in (in_order, function, both):
        assert (other == by_name)[:, :, :16].all()


WRONG_PROBES = {
    "tokens for a model with arguments of its own": (BATCH, r"takes idx, targets, not input_ids"),
    "an argument that is unknown": ({"ids": BATCH}, r"takes idx, targets, not ids"),
    "no loss": ({"idx": BATCH}, "no scalar loss"),
    "tokens beyond the vocabulary": ((BATCH + 64, BATCH), "does not run through NanoGPT"),
    "a function that fails": (lambda model: model.missing(), "does not run through NanoGPT"),
    "a function of logits": (lambda model: model(BATCH)[0], "no scalar loss"),
    "a list of batches": ([{"idx": BATCH}], "not a list of dict"),
}


@pytest.mark.parametrize("probe", WRONG_PROBES)
def test_a_probe_that_gives_no_loss_is_refused_before_anything_is_made(tmp_path, probe):
    wrong, message = WRONG_PROBES[probe]
    model = NanoGPT()
    with pytest.raises(InputError, match=message) as told:
        spectra.record(model, adam(model), tmp_path / "a.zarr", probe=wrong)
    assert len(str(told.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())
    assert not model.embedding.weight._backward_hooks


def test_trying_the_probe_changes_nothing(tmp_path):
    def trained(probe):
        torch.manual_seed(3)
        model = small_llama(attention_dropout=0.5)
        optimizer = adam(model)
        recorder = None
        if probe:
            recorder = spectra.record(model, optimizer, tmp_path / "a.zarr", probe=BATCH, every=9)
        model.train()
        model(input_ids=BATCH, labels=BATCH).loss.backward()
        optimizer.step()
        if recorder:
            recorder.close()
        return torch.cat([p.flatten() for p in model.parameters()]), torch.rand(4)

    with_probe, without = trained(True), trained(False)
    assert all(torch.equal(a, b) for a, b in zip(with_probe, without, strict=True))


def test_accelerates_optimizer_is_recorded_when_it_steps(tmp_path):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = small_llama()
    model, optimizer = accelerator.prepare(model, adam(model))
    with spectra.record(model, optimizer, tmp_path / "a.zarr", probe=BATCH, every=1):
        for _ in range(4):
            with accelerator.accumulate(model):
                accelerator.backward(model(input_ids=BATCH, labels=BATCH).loss)
                optimizer.step()
                optimizer.zero_grad()
    assert spectra.open(tmp_path / "a.zarr")["spectra"].step.values.tolist() == [0, 1, 2]


def test_an_optimizer_without_step_hooks_is_refused_before_anything_is_made(tmp_path):
    class Wrapper:
        def __init__(self, inner):
            self.inner, self.param_groups = inner, inner.param_groups

        def step(self):
            self.inner.step()

    model = small_llama()
    with pytest.raises(InputError, match="a Wrapper has no step hooks"):
        spectra.record(model, Wrapper(adam(model)), tmp_path / "a.zarr", probe=BATCH)
    assert not list(tmp_path.iterdir())


def test_partitioned_parameters_are_refused_with_what_to_do(tmp_path):
    model = small_llama()
    optimizer = adam(model)
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    with pytest.raises(InputError, match=r"ZeRO-3.*FSDP2 to record"):
        spectra.record(model, optimizer, tmp_path / "a.zarr", probe=BATCH)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_flattened_are_no_matrices(tmp_path):
    model = small_llama()
    for layer in model.model.layers:
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                module.weight = nn.Parameter(module.weight.detach().flatten())
    with pytest.raises(InputError, match="no linear layer inside a numbered block"):
        spectra.record(model, adam(model), tmp_path / "a.zarr", probe=BATCH)
