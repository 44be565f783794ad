"""GaLore against its authors' package, and updates that bfloat16 would lose."""

import importlib.util
import sys
from importlib.metadata import distribution

import pytest
import torch

from spectra_pretrain.optimizers.galore import GaLoreAdamW, basis_of, project, project_back
from spectra_pretrain.optimizers.stochastic import StochasticAdamW, rounded_at_random
from tests.small import random_batch, small_llama


def galore_torch():
    """Its AdamW, without the package's __init__, which asks for bitsandbytes and CUDA."""
    folder = distribution("galore-torch").locate_file("galore_torch")
    package = importlib.util.module_from_spec(
        importlib.util.spec_from_loader("galore_torch_alone", loader=None, is_package=True)
    )
    package.__path__ = [str(folder)]
    sys.modules["galore_torch_alone"] = package
    return importlib.import_module("galore_torch_alone.adamw").AdamW


def groups(model, ours: bool, rank=6, every=3):
    matrices = [p for n, p in model.named_parameters() if "_proj" in n]
    known = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in known]
    own = {"rank": rank, "every": every, "scale": 0.25}
    theirs = {"rank": rank, "update_proj_gap": every, "scale": 0.25, "proj_type": "std"}
    return [{"params": others}, {"params": matrices, **(own if ours else theirs)}]


def step(model, optimizer, number):
    batch = random_batch(number)
    model(input_ids=batch, labels=batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_galore_is_its_authors_step_by_step(weight_decay):
    mine, theirs = small_llama(), small_llama()
    common = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": weight_decay}
    one = GaLoreAdamW(groups(mine, True), **common)
    other = galore_torch()(groups(theirs, False), no_deprecation_warning=True, **common)
    for number in range(8):
        step(mine, one, number)
        step(theirs, other, number)
        for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6, msg=f"{name} {number}")


def test_galore_goes_on_from_a_file_of_tensors_and_numbers(tmp_path):
    whole, cut = small_llama(), small_llama()
    one, other = GaLoreAdamW(groups(whole, True)), GaLoreAdamW(groups(cut, True))
    for number in range(4):
        step(whole, one, number)
        step(cut, other, number)
    torch.save({"model": cut.state_dict(), "optimizer": other.state_dict()}, tmp_path / "a.pt")
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    again = small_llama(seed=5)
    again.load_state_dict(state["model"])
    resumed = GaLoreAdamW(groups(again, True))
    resumed.load_state_dict(state["optimizer"])
    for number in range(4, 8):
        step(whole, one, number)
        step(again, resumed, number)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
def test_a_randomized_projection_finds_the_exact_subspace(shape):
    torch.manual_seed(0)
    gradient = torch.randn(shape[0], 4) @ torch.randn(4, shape[1]) + 1e-3 * torch.randn(shape)
    found = [
        project_back(project(gradient, basis), basis, gradient.shape)
        for basis in (basis_of(gradient, 4, way) for way in (False, True))
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-2)


def test_random_rounding_is_right_in_the_mean_and_never_further_than_a_neighbour():
    torch.manual_seed(0)
    x = torch.tensor([1.0 + 2**-10, -3.001, 1e-30, 0.0, 65504.0]).repeat(20_000, 1)
    found = rounded_at_random(x).float()
    spacing = torch.tensor([2**-7, 2**-6, 2e-32, 1e-30, 256.0])
    assert ((found - x).abs() <= spacing).all()
    error = (found.double().mean(dim=0) - x[0].double()).abs()
    assert (error <= 5 * spacing / 20_000**0.5).all()
    exact = torch.tensor([1.5, -2.0, torch.inf, -torch.inf])
    assert torch.equal(rounded_at_random(exact).float(), exact)
    assert rounded_at_random(torch.tensor([torch.nan])).isnan().all()


def test_stochastic_rounding_follows_float32_where_plain_bfloat16_stands_still():
    """A thousand updates of a thousandth of the spacing each."""
    target = torch.linspace(0.5, 1.5, 4096)
    ends = {}
    for name in ("float32", "stochastic", "nearest"):
        torch.manual_seed(0)
        dtype = torch.float32 if name == "float32" else torch.bfloat16
        weight = torch.nn.Parameter(torch.ones(4096, dtype=dtype))
        kind = StochasticAdamW if name == "stochastic" else torch.optim.AdamW
        optimizer = kind([weight], lr=1e-4, weight_decay=0.0)
        for _ in range(1000):
            ((weight.float() - target) ** 2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends[name] = weight.detach().float()
    moved = (ends["float32"] - 1).abs().mean()
    assert (ends["nearest"] - 1).abs().mean() < 0.1 * moved
    far = (target - 1).abs() > 0.15
    drift = (ends["stochastic"] - ends["float32"])[far]
    assert drift.mean().abs() < 0.02 * moved
    assert drift.abs().mean() < 0.3 * moved  # a random walk among numbers 0.008 apart
