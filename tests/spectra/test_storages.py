"""A storage says all about itself in one file; everyone else reads the registry."""

import ast
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import spectra
from spectra.allocation.costs import break_even, factored_parameters
from spectra.cli import main
from spectra.linalg import scaled, shifted
from spectra.models.pairs import pair, unpair
from spectra.registry import Entry
from spectra.storages.layer import CompressedLinear, put
from spectra.storages.registry import STORAGES, Storage
from spectra.storages.stored import Factors, StoredMatrix
from spectra_data.errors import InputError
from tests.small import small_llama

ROOT = Path(__file__).parents[2]
BUILT_IN = tuple(STORAGES)


@dataclass(frozen=True, eq=False)
class Three(StoredMatrix):
    """Orthonormal columns, a square core, and orthonormal rows."""

    left: torch.Tensor
    core: torch.Tensor
    right: torch.Tensor
    nonzero = ("left", "core", "right")

    @classmethod
    def shapes(cls, rows, cols, rank):
        return {"left": (rows, rank), "core": (rank, rank), "right": (rank, cols)}

    @classmethod
    def encode(cls, factors, dtype):
        left, upper = torch.linalg.qr(factors.left.double())
        right, lower = torch.linalg.qr(factors.right.double().mT)
        parts = (left, upper @ lower.mT, right.mT)
        return cls(*(part.to(dtype).contiguous() for part in parts))

    @classmethod
    def decode(cls, parts, rows, cols):
        return cls(parts["left"], parts["core"], parts["right"])

    @property
    def tensors(self):
        return {"left": self.left, "core": self.core, "right": self.right}

    def product(self):
        return self.left @ self.core @ self.right

    def float(self):
        return Three(self.left.float(), self.core.float(), self.right.float())

    def scaled(self, exponent):
        core, own = scaled(self.core)
        return Three(self.left.float(), shifted(core, own + exponent), self.right.float())


class ThreeLinear(CompressedLinear):
    """The whole product at every call."""

    stored = Three


class ThreeStorage(Storage):
    """r(m + n + r) parameters, two bytes for each."""

    def parameters(self, rows, cols, rank):
        return rank * (rows + cols + rank)

    def rank_of(self, rows, cols, parameters):
        sides = rows + cols
        return (np.sqrt(sides**2 + 4.0 * parameters) - sides) / 2

    def bytes(self, rows, cols, rank, width):
        return 2 * self.parameters(rows, cols, rank)

    def layer(self):
        return ThreeLinear


THREE = ThreeStorage()


@pytest.fixture
def three(monkeypatch):
    """A storage that the project does not know, in one file with one line."""
    entry = Entry("orthonormal factors around a core", f"{__name__}:THREE")
    monkeypatch.setitem(STORAGES.entries, "three", entry)


def ran(capsys, *words):
    """What a command reports."""
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_storage_that_is_registered_goes_from_allocation_to_evaluation(
    tmp_path, three, shared, capsys
):
    model = shared / "data" / "checkpoints" / "stories260K"
    names = ("scan.zarr", "map.json", "c", "dense", "c.zarr", "dense.zarr")
    scan, plan, small, dense, first, second = (tmp_path / name for name in names)
    ran(capsys, "scan", model, "--out", scan)
    how = ("--budget", 0.7, "--method", "uniform", "--storage", "three")
    found = ran(capsys, "allocate", scan, *how, "--out", plan)
    rank_map = spectra.RankMap.load(plan)
    factored = [m for m in rank_map.modules if m.factored]
    assert factored
    assert all(m.params == m.rank * (m.rows + m.cols + m.rank) for m in factored)
    assert 0.65 < rank_map.budget <= 0.7
    whole = sum(m.params_dense for m in rank_map.modules if not m.factored)
    assert rank_map.format == "F32"
    assert found["bytes"] == 2 * sum(m.params for m in factored) + 4 * whole

    assert ran(capsys, "compress", model, "--map", plan, "--out", small)["storage"] == "three"
    stored = load_file(small / "model.safetensors")
    one = factored[0]
    assert stored[f"{one.name}.core"].shape == (one.rank, one.rank)
    loaded = AutoModelForCausalLM.from_pretrained(small)
    assert type(loaded.get_submodule(one.name)) is ThreeLinear
    loaded.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in stored.items())

    ran(capsys, "merge", small, "--out", dense)
    (tmp_path / "text.txt").write_text("Once upon a time there was a little girl. " * 60)
    text = ("--data", tmp_path / "text.txt", "--seq-len", 64, "--windows", 4)
    measured = [ran(capsys, "evaluate", at, *text) for at in (small, dense)]
    assert measured[0]["perplexity"] == pytest.approx(measured[1]["perplexity"], rel=1e-4)
    assert measured[0]["block_parameters"] == rank_map.parameters
    for address, store in ((small, first), (dense, second)):
        ran(capsys, "scan", address, "--out", store)
    spectra_of = [spectra.open(store)["spectra"].weight for store in (first, second)]
    np.testing.assert_allclose(*spectra_of, atol=1e-5)


def test_a_layer_without_a_pair_takes_no_adapters_and_says_so():
    model = small_llama()
    put(model, "model.layers.0.self_attn.q_proj", ThreeLinear(32, 32, 2))
    with pytest.raises(InputError, match="ThreeLinear layers support no adapters"):
        pair(model)


def factors_of(rows, cols, rank, scale=1.0):
    generator = torch.Generator().manual_seed(rows + cols + rank)
    left, right = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((rows, rank), (rank, cols))
    )
    return Factors(left * scale, right)


@pytest.mark.parametrize("name", BUILT_IN)
@given(rows=st.integers(2, 40), cols=st.integers(2, 40), share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_what_a_layer_and_a_file_hold_is_what_the_costs_count(name, rows, cols, share):
    rank = 1 + int(share * (min(rows, cols) - 1))
    stored = STORAGES[name].stored()
    shapes = stored.shapes(rows, cols, rank)
    count = sum(int(np.prod(shape)) for n, shape in shapes.items() if n not in stored.indices)
    assert count == int(factored_parameters(rows, cols, rank, name))
    parts = stored.encode(factors_of(rows, cols, rank), torch.float32).tensors
    assert {n: tuple(part.shape) for n, part in parts.items()} == shapes
    layer = STORAGES[name].layer()(cols, rows, rank)
    assert {n: tuple(part.shape) for n, part in layer.state_dict().items()} == shapes


@pytest.mark.parametrize("name", [*BUILT_IN, "three"])
@given(rows=st.integers(1, 500), cols=st.integers(1, 500), share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_the_rank_of_a_cost_is_the_one_that_has_it(name, rows, cols, share):
    storage = THREE if name == "three" else STORAGES[name]
    rank = 1 + int(share * (min(rows, cols) - 1))
    sides = np.array([rows]), np.array([cols])
    cost = storage.parameters(*sides, np.array([rank]))
    if cost <= rows * cols:
        np.testing.assert_allclose(storage.rank_of(*sides, cost.astype(float)), rank)
    if name == "pivoted":
        assert break_even(rows, cols, name) == min(rows, cols)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize(("rows", "cols"), [(6, 9), (9, 6)])
def test_what_is_stored_is_the_product_at_any_scale(name, rows, cols):
    factors = factors_of(rows, cols, 3, scale=2.0**-100)
    stored = STORAGES[name].stored()
    encoded = stored.encode(factors, torch.float64)
    read = stored.decode(encoded.tensors, rows, cols)
    torch.testing.assert_close(read.product(), factors.product(), rtol=1e-9, atol=0)
    wanted = (factors.product() * 2.0**100).float()
    torch.testing.assert_close(read.scaled(100).product(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize(("rows", "cols"), [(6, 9), (9, 6)])
def test_a_pair_is_its_layer_with_the_same_parameters(name, rows, cols):
    layer = STORAGES[name].layer()(cols, rows, 3, bias=True)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    model, x = torch.nn.ModuleDict({"one": layer}), torch.randn(2, cols)
    wanted = layer(x)
    held = {parameter.data_ptr() for parameter in layer.parameters()}
    pair(model)
    assert not isinstance(model["one"], CompressedLinear)
    torch.testing.assert_close(model["one"](x), wanted)
    assert {parameter.data_ptr() for parameter in model.parameters()} == held
    unpair(model)
    assert type(model["one"]) is type(layer)
    torch.testing.assert_close(model["one"](x), wanted)


def test_names_and_costs_of_storages_are_read_without_torch():
    code = """
import sys, spectra_dashboard.view, spectra.allocation.path, spectra.store.evaluations
from spectra.allocation.costs import factored_bytes
from spectra.storages.registry import STORAGES
assert all(factored_bytes(6, 9, 2, name, "F32") for name in STORAGES), STORAGES.help()
print(sorted({"torch", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr


def test_the_published_schema_names_the_storages_of_the_registry():
    schema = json.loads((files("spectra") / "assets" / "rankmap-1.schema.json").read_text())
    assert schema["properties"]["storage"]["enum"] == list(STORAGES)


def names_compared(tree):
    """Storages' names where a program branches on them: comparisons, cases, tables, choices."""
    for node in ast.walk(tree):
        places = []
        if isinstance(node, ast.Compare):
            places = [*ast.walk(node)]
        elif isinstance(node, ast.MatchValue):
            places = [node.value]
        elif isinstance(node, ast.Dict):
            places = node.keys
        elif isinstance(node, ast.Subscript):
            places = [*ast.walk(node.slice)]
        elif isinstance(node, ast.List | ast.Set | ast.Tuple):
            places = node.elts
        for place in places:
            if isinstance(place, ast.Constant) and place.value in BUILT_IN:
                yield place.lineno, place.value


def test_no_module_outside_of_the_room_branches_on_a_storages_name():
    found = [
        (str(path.relative_to(ROOT)), *place)
        for folder in ("spectra", "data", "pretrain", "dashboard")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if ROOT / "spectra" / "storages" not in path.parents
        for place in names_compared(ast.parse(path.read_text()))
    ]
    assert not found


def test_a_storage_that_is_not_there_is_one_line_before_any_work(tmp_path, capsys):
    allocation = ["allocate", str(tmp_path / "no.zarr"), "--err", "0.5", "--method", "owl"]
    compression = ["compress", str(tmp_path), "--budget", "0.5", "--out", str(tmp_path / "out")]
    for arguments in (allocation, compression):
        assert main([*arguments, "--storage", "zip"]) == 2
        assert "no storage 'zip'; there are: factors, pivoted" in capsys.readouterr().err
