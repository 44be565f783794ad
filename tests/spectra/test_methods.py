"""Methods of allocation: a file and a line each; targets: one value with one message."""

import dataclasses
import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import spectra
from spectra.allocation.allocate import Maker
from spectra.allocation.candidates import candidates_of
from spectra.allocation.methods.registry import METHODS, offered
from spectra.allocation.options import AllocationSettings
from spectra.allocation.path import compression_path
from spectra.allocation.target import KINDS, TARGETS, Target
from spectra.cli import main
from spectra_data.errors import InputError
from tests.spectra.by_layer import ENTRY, NAME
from tests.spectra.checkpoints import saved

LISTED = "there are: welore, welore-grid, uniform, owl, alpha, d-rank, budget"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The scan of a small checkpoint of two layers."""
    folder = tmp_path_factory.mktemp("scanned")
    saved(folder / "model")
    spectra.scan(folder / "model", folder / "a.zarr")
    return str(folder / "a.zarr")


@pytest.fixture
def by_layer(monkeypatch):
    monkeypatch.setitem(METHODS.entries, NAME, ENTRY)


# a method is a file and a line


def removed(rank_map, layer):
    return sum(m.full_rank - m.rank for m in rank_map.modules if m.layer == layer)


def test_a_method_that_is_registered_makes_maps(store, by_layer, tmp_path):
    made = spectra.allocate(store, method=NAME, err=0.3)
    assert (made.method, made.err) == (NAME, pytest.approx(0.3, abs=0.01))
    assert removed(made, 1) == pytest.approx(2 * removed(made, 0), abs=7)  # half a rank each
    assert spectra.allocate(store, method=NAME, budget=0.6).budget <= 0.6
    made.save(tmp_path / "map.json")
    assert spectra.RankMap.load(tmp_path / "map.json") == made
    schema = json.loads((files("spectra") / "assets" / "rankmap-1.schema.json").read_text())
    jsonschema.validate(json.loads(made.to_json()), schema)
    path = compression_path(candidates_of(spectra.open(store)), method=NAME, spacing=0.1)
    np.testing.assert_array_equal(
        path["rank"].sel(target=0.3), [module.rank for module in made.modules]
    )


def test_a_method_that_is_registered_is_one_of_the_commands(store, by_layer, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "spectra.commands.allocate", raising=False)
    with pytest.raises(SystemExit):
        main(["allocate", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"budget,{NAME}}}" in said
    assert f"{NAME}: {ENTRY.summary}" in said
    assert main(["allocate", store, "--method", NAME, "--err", "0.3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    made = spectra.allocate(store, method=NAME, err=0.3)
    assert (found["method"], found["parameters"]) == (NAME, made.parameters)
    assert main(["allocate", store, "--method", NAME, "--threshold", "0.3"]) == 2
    assert f"for {NAME}, name an ERR or a budget" in capsys.readouterr().err


def test_a_name_without_an_entry_is_refused_with_the_list_and_never_another_methods_ranks(
    store, capsys
):
    given = candidates_of(spectra.open(store))
    for refused in (
        lambda: spectra.allocate(store, method="d_rank", err=0.5),
        lambda: Maker(given, AllocationSettings(method="d_rank")),
        lambda: compression_path(given, method="d_rank"),
    ):
        with pytest.raises(InputError, match=f"no method 'd_rank'; {LISTED}"):
            refused()
    assert main(["allocate", store, "--method", "d_rank", "--err", "0.5"]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in offered("outliers"))


def test_no_two_methods_give_the_same_ranks(store):
    given = dataclasses.replace(candidates_of(spectra.open(store)), weighted=True)
    ranks = {}
    for name in METHODS:
        outliers = {0: 0.1, 1: 0.2} if "outliers" in METHODS[name].needs else None
        made = Maker(given, AllocationSettings(method=name), outliers).map(Target("budget", 0.6))
        assert made.method == name
        ranks[name] = tuple(made.ranks.values())
    ranks.pop("welore-grid")  # which is WeLore's on a grid
    assert len(set(ranks.values())) == len(ranks)


def test_the_least_expected_loss_needs_spectra_that_statistics_have_weighted(store, capsys):
    with pytest.raises(InputError, match="loss needs spectra that are weighted by the statistics"):
        spectra.allocate(store, method="loss", budget=0.6)
    assert "loss" not in offered("outliers")
    assert set(METHODS) - set(offered()) == {"owl", "loss"}


def test_the_docs_list_every_method_with_what_it_takes_and_needs():
    page = Path(__file__).parents[2] / "docs" / "allocation.md"
    rows = re.findall(r"^\| `(\w[\w-]*)` \|(.*)\|$", page.read_text().split("## The map")[0], re.M)
    stated = {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}
    assert stated == {
        name: [
            METHODS.entries[name].summary,
            ", ".join(KINDS[kind].label for kind in METHODS[name].targets),
            ", ".join(METHODS[name].needs),
            "LRCs" if METHODS[name].lrcs_alone else "where it saves",
        ]
        for name in METHODS
    }


def test_the_help_of_allocate_does_not_wait_for_torch():
    code = (
        "import sys; from spectra.cli import main\n"
        "try: main(['allocate', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# a target is one value


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), float("inf")])
def test_a_target_beyond_its_range_is_refused_in_the_same_words_everywhere(
    store, capsys, kind, value
):
    said = f"the target cannot be reached: {KINDS[kind].noun} is a number from 0 to 1, not "
    for made in (
        lambda: Target(kind, value),
        lambda: Target.of(**{kind: value}),
        lambda: spectra.allocate(store, **{kind: value}),
    ):
        with pytest.raises(InputError) as refused:
            made()
        assert str(refused.value) == f"{said}{value:g}"
    with pytest.raises(InputError) as refused:
        Target.read(kind, str(value))
    assert str(refused.value) == f"{said}{str(value)!r}"
    assert main(["allocate", store, f"--{kind}={value}"]) == 2
    assert f"{said}{value:g}" in capsys.readouterr().err


def test_one_target_is_named():
    for given in ({}, {"err": None}, {"err": 0.1, "threshold": 0.2}):
        with pytest.raises(InputError, match="name one target: an ERR, a budget, or a threshold"):
            Target.of(**given)
    assert Target.of(err=None, budget=0.5) == Target("budget", 0.5) == Target.read("budget", ".5")
    assert Target("budget", 0.5).asked() == {"err": None, "budget": 0.5, "threshold": None}
    with pytest.raises(InputError, match="no target 'bytes'; there are: err, budget, threshold"):
        Target("bytes", 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"asked": {"err": 0.1, "budget": 0.2, "threshold": None}}, "name one target"),
        ({"asked": {"err": 2, "budget": None, "threshold": None}}, "from 0 to 1, not 2"),
        (
            {"asked": {"err": "x", "budget": None, "threshold": None}},
            "expected `float | null`, got `str`",
        ),
        ({"asked": {"err": None, "budget": None, "threshold": 0.2}}, "for uniform, name an ERR"),
        ({"threshold": 0.2}, "states a threshold, but uniform has none"),
    ],
)
def test_a_map_whose_target_its_method_does_not_take_is_refused(store, change, message):
    fields = spectra.allocate(store, method="uniform", err=0.5).to_dict()
    with pytest.raises(InputError, match=message):
        spectra.RankMap.from_dict(fields | change)


def test_a_map_of_another_tools_method_is_taken_as_it_is(store):
    fields = spectra.allocate(store, err=0.5).to_dict() | {"method": "by hand"}
    assert spectra.RankMap.from_dict(fields).method == "by hand"
