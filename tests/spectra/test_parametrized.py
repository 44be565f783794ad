"""Matrices that torch's own modules hold in other ways: `in_proj_weight`, weight norm, masks."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

import spectra
from spectra.checkpoint.checkpoint import open_checkpoint
from spectra.matrices import find_matrices
from spectra_data.errors import InputError

SIDE = 8


class Block(nn.Module):
    """A block of attention and a layer with weight norm along one of its sides."""

    def __init__(self, norm=None, dim=0, **attention):
        super().__init__()
        self.attention = nn.MultiheadAttention(SIDE, 2, batch_first=True, **attention)
        self.fc = nn.Linear(SIDE, 2 * SIDE)
        self.out = nn.Linear(2 * SIDE, SIDE)
        if norm is not None:
            self.fc = norm(self.fc, dim=dim)

    def forward(self, x):
        kind = x[..., : self.attention.kdim], x[..., : self.attention.vdim]
        return x + self.out(torch.relu(self.fc(x + self.attention(x, *kind)[0])))


class Model(nn.Module):
    """Two of them, with a loss."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Block(**options) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()


NORMS = [
    pytest.param(nn.utils.parametrizations.weight_norm, id="parametrization"),
    pytest.param(nn.utils.weight_norm, id="hook", marks=pytest.mark.filterwarnings("ignore")),
]


def trained(model):
    """The same model with magnitudes and directions that moved apart."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def on_disk(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pt")
    opened = open_checkpoint(str(tmp_path / "model.pt"))
    return {matrix.name: opened.read(matrix) for matrix in opened.matrices}, opened


def in_memory(model):
    return {matrix.name: weight.value for matrix, weight in find_matrices(model)[0].items()}


@pytest.mark.parametrize("attention", [{}, {"kdim": 4, "vdim": 6}])
def test_the_parts_of_in_proj_weight_are_q_k_and_v(tmp_path, attention):
    model = Model(**attention)
    found, opened = on_disk(model, tmp_path)
    layer = model.layers[1].attention
    if attention:
        parts = layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight
    else:
        parts = layer.in_proj_weight.chunk(3)
    for name, part in zip("qkv", parts, strict=True):
        assert torch.equal(found[f"layers.1.attention.{name}_proj"], part)
    assert len(found) == 2 * 6
    assert {m.role for m in opened.matrices} == {"q", "k", "v", "out_proj", "fc", "out"}
    held = in_memory(model)
    assert held.keys() == found.keys()
    assert all(torch.equal(held[name], value) for name, value in found.items())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dim", [0, 1, None])
def test_the_weight_under_weight_norm_is_the_one_that_acts(tmp_path, norm, dim):
    model = trained(Model(norm=norm, dim=dim))
    model(torch.randn(1, 3, SIDE))  # the hook sets the weight when the layer runs
    for found in (on_disk(model, tmp_path)[0], in_memory(model)):
        for number, layer in enumerate(model.layers):
            torch.testing.assert_close(found[f"layers.{number}.fc"], layer.fc.weight.detach())
        assert len(found) == 2 * 6


def test_a_single_row_or_column_under_weight_norm(tmp_path):
    for sides in ((1, 5), (5, 1)):
        for dim in (0, 1):
            layer = nn.utils.parametrizations.weight_norm(nn.Linear(*sides), dim=dim)
            model = trained(nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"a": layer})])}))
            found, _ = on_disk(model, tmp_path)
            torch.testing.assert_close(found["layers.0.a"], layer.weight.detach())


@pytest.mark.parametrize("norm", NORMS)
def test_a_run_records_the_weight_that_acts_and_its_gradient(tmp_path, norm):
    model = trained(Model(norm=norm))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = (torch.randn(2, 3, SIDE),)
    store = tmp_path / "run.zarr"
    recorder = spectra.record(model, optimizer, store, probe=batch, every=1, steps=2)
    for _ in range(2):
        model(*batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    recorder.close()
    run = spectra.open(store)["spectra"].sel(matrix="layers.0.fc").isel(step=-1)
    model(*batch)
    weight = model.layers[0].fc.weight.detach()
    np.testing.assert_allclose(run.weight[:SIDE], torch.linalg.svdvals(weight), rtol=1e-4)
    plain = Model()
    state = {k: v for k, v in model.state_dict().items() if k in plain.state_dict()}
    state |= {f"layers.{i}.fc.weight": layer.fc.weight for i, layer in enumerate(model.layers)}
    plain.load_state_dict(state)
    plain(*batch).backward()
    gradient = torch.linalg.svdvals(plain.layers[0].fc.weight.grad)
    np.testing.assert_allclose(run.gradient[:SIDE], gradient, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("attention", [{}, {"kdim": 4, "vdim": 6}])
def test_a_run_records_q_k_and_v_apart(tmp_path, attention):
    model = Model(**attention)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = (torch.randn(2, 3, SIDE),)
    recorder = spectra.record(model, optimizer, tmp_path / "a.zarr", probe=batch, every=1, steps=1)
    model(*batch).backward()
    optimizer.step()
    recorder.close()
    run = spectra.open(tmp_path / "a.zarr")["spectra"].isel(step=-1)
    for name, value in in_memory(model).items():
        values = run.weight.sel(matrix=name).dropna("index")
        np.testing.assert_allclose(values, torch.linalg.svdvals(value), rtol=1e-4, atol=1e-6)
        assert run.gradient.sel(matrix=name).notnull().any()


def test_a_layer_that_torch_pruned_is_read_with_its_mask(tmp_path):
    model = Model()
    for layer in model.layers:
        prune.l1_unstructured(layer.out, "weight", 0.5)
    for found in (on_disk(model, tmp_path)[0], in_memory(model)):
        assert (found["layers.1.out"] == 0).float().mean() == 0.5
        torch.testing.assert_close(found["layers.1.out"], model.layers[1].out.weight.detach())
        assert len(found) == 2 * 6


@pytest.mark.parametrize(
    "norm",
    [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm],
    ids=["new", "old"],
)
@pytest.mark.filterwarnings("ignore")
def test_other_parametrizations_are_read_in_memory_and_left_out_of_files(tmp_path, norm):
    block = Block()
    block.fc = norm(block.fc)
    model = nn.ModuleDict({"layers": nn.ModuleList([block])})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    held = in_memory(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    block.fc(torch.randn(1, SIDE))
    torch.testing.assert_close(held["layers.0.fc"], block.fc.weight.detach())
    found, opened = on_disk(model, tmp_path)
    assert found.keys() == held.keys() - {"layers.0.fc"}
    reasons = {s.name: s.reason for s in opened.skipped if ".fc." in s.name}
    reasons.pop("layers.0.fc.bias")
    assert set(reasons.values()) == {"a part of a parametrized weight"}


def test_a_magnitude_that_cannot_be_read_is_named(tmp_path):
    model = Model(norm=nn.utils.parametrizations.weight_norm)
    name = "layers.1.fc.parametrizations.weight.original0"
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    last = {k: v for k, v in state.items() if k != name} | {name: state[name]}
    save_file(last, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    offset = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + offset])
    header[name]["data_offsets"] = [len(content), len(content) + 64]
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + content[8 + offset :]
    )
    with pytest.raises(InputError, match=f"truncated: {name} ends"):
        spectra.scan(str(tmp_path / "model.safetensors"), tmp_path / "out.zarr")
