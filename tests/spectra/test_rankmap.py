"""Rank maps: one validated JSON file, and the same map in other tools' formats."""

import dataclasses
import json
import re
from importlib.resources import files

import jsonschema
import msgspec
import numpy as np
import pandas
import pyarrow.parquet
import pytest
import torch
import xarray as xr

import spectra
from spectra.allocation.allocate import allocate
from spectra.allocation.candidates import candidates_of
from spectra.allocation.methods.registry import offered
from spectra.allocation.path import compression_path, write_path
from spectra.allocation.rankmap import Model
from spectra.checkpoint.checkpoint import open_checkpoint
from spectra.cli import main
from spectra.compression.fit import require_fit
from spectra.exports.formats import FORMATS, export
from spectra_data.errors import InputError
from tests.small import SIZES
from tests.spectra.checkpoints import rewritten, saved

METHODS = offered("outliers")
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    """A small checkpoint, its scan and a map of it."""
    folder = tmp_path_factory.mktemp("scanned")
    saved(folder / "model")
    run = spectra.scan(folder / "model", folder / "a.zarr")
    return folder, run, allocate(run, err=0.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_map_is_read_back_bit_for_bit(tmp_path, scanned, method):
    outliers = {0: 0.1, 1: 0.2} if method == "owl" else None
    made = allocate(scanned[1], budget=0.7, method=method, outliers=outliers)
    made.save(tmp_path / "map.json")
    assert spectra.RankMap.load(tmp_path / "map.json") == made
    assert spectra.RankMap.load(tmp_path / "map.json").to_json() == made.to_json()


@pytest.mark.parametrize("target", [{"err": 0.5}, {"budget": 0.7, "method": "budget"}])
def test_maps_satisfy_the_published_schema(scanned, target):
    schema = json.loads((files("spectra") / "assets" / "rankmap-1.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    fields = json.loads(allocate(scanned[1], **target).to_json())
    assert not list(validator.iter_errors(fields))
    stated = schema["properties"]["modules"]["items"]["properties"]
    assert set(stated) == {f.name for f in dataclasses.fields(spectra.allocate(
        scanned[1], err=0.5).modules[0])}  # fmt: skip
    fields["modules"][0]["rank"] = 0
    assert list(validator.iter_errors(fields))


def constraints(stated, definitions):
    """What a schema says of one value, in one form: types as a set, unions merged."""
    if "$ref" in stated:
        return constraints(definitions[stated["$ref"].rpartition("/")[2]], definitions)
    found = {"types": set()}
    for one in stated.get("anyOf", [stated]):
        types = one.get("type", [])
        found["types"] |= {types} if isinstance(types, str) else set(types)
        rest = ("minimum", "maximum", "exclusiveMinimum", "pattern", "minLength", "enum")
        found |= {name: one[name] for name in rest if name in one}
        if "items" in one:
            found["items"] = constraints(one["items"], definitions)
        if "properties" in one:
            found["properties"] = {
                name: constraints(value, definitions) for name, value in one["properties"].items()
            }
    return found


def test_the_published_schema_says_what_the_types_say():
    schema = json.loads((files("spectra") / "assets" / "rankmap-1.schema.json").read_text())
    published = constraints(schema, {})["properties"]
    made = msgspec.json.schema(spectra.RankMap)
    typed = constraints(made, made["$defs"])["properties"]
    assert published.keys() - {"schema"} == typed.keys()
    by_name = {"schema", "storage", "asked", "options"}  # more than a type says, in other tests
    for name in published.keys() - by_name:
        assert published[name] == typed[name], name


def test_the_layout_is_the_documented_one(scanned):
    fields = scanned[2].to_dict()
    for name in ("schema", "model", "method", "threshold", "storage", "err", "budget", "modules"):
        assert name in fields
    assert fields["schema"] == "spectra.rankmap/1"
    assert set(fields["model"]) == {"name", "revision", "sha256"}
    assert set(fields["modules"][0]) == {
        "name", "layer", "role", "rows", "cols", "full_rank", "rank", "kind", "factored",
        "relative_error", "params_dense", "params",
    }  # fmt: skip


def test_a_map_cannot_be_changed(scanned):
    with pytest.raises(dataclasses.FrozenInstanceError):
        scanned[2].err = 0.1
    with pytest.raises(dataclasses.FrozenInstanceError):
        scanned[2].modules[0].rank = 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema="spectra.rankmap/2"), "its schema is 'spectra.rankmap/2'"),
        (lambda m: m.pop("err"), "err"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m.update(err=0.9), "it states err 0.9, but its modules have"),
        (lambda m: m.update(storage="zip"), "there are: factors, pivoted"),
        (lambda m: m.update(modules=[]), "no modules"),
        (
            lambda m: m["modules"].append(m["modules"][0]),
            "it holds model.layers.0.self_attn.q_proj twice",
        ),
        (lambda m: m["modules"][0].update(rank=99), "more than its full rank"),
        (lambda m: m["modules"][0].update(rank=1.5), "rank: expected `int`, got `float`"),
        (lambda m: m["modules"][0].update(kind="HRC"), "kind: invalid enum value 'HRC'"),
        (lambda m: m["modules"][0].update(params=1), "1 of 1024 parameters, not"),
        (
            lambda m: m["modules"][0].update(relative_error=-1),
            "relative_error: expected `float` >= 0",
        ),
        (lambda m: m["modules"][0].update(role=None), "role: expected `str`, got `null`"),
        (lambda m: m["modules"][0].update(name=3), "name: expected `str`, got `int`"),
        (lambda m: m.update(threshold="high"), "threshold: expected `float | null`, got `str`"),
        (lambda m: m.update(approximate="no"), "approximate: expected `bool`, got `str`"),
        (lambda m: m.update(fused=[1]), "fused: expected `object`, got `array`"),
        (lambda m: m["options"].update(lrc_factor="x"), "lrc_factor: expected `float`, got `str`"),
        (lambda m: m["modules"][0].update(full_rank=31), "a full rank of 31"),
    ],
)
def test_a_map_that_does_not_add_up_is_refused(tmp_path, scanned, change, message):
    fields = json.loads(scanned[2].to_json())
    change(fields)
    (tmp_path / "map.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        spectra.RankMap.load(tmp_path / "map.json")
    assert "map.json" in str(caught.value)


def test_files_that_are_no_map(tmp_path):
    for content, message in [
        ("{", "is not JSON"),
        ("[]", "is not a rank map"),
        ("{}", "is not a rank map"),
    ]:
        (tmp_path / "map.json").write_text(content)
        with pytest.raises(InputError, match=message):
            spectra.RankMap.load(tmp_path / "map.json")
    with pytest.raises(InputError, match="cannot read"):
        spectra.RankMap.load(tmp_path / "none.json")


# does it fit?


def test_a_map_fits_the_checkpoint_it_was_made_for(scanned):
    folder, _, made = scanned
    require_fit(made, open_checkpoint(folder / "model"))


def test_a_map_of_something_else_is_refused_with_the_differences(tmp_path, scanned):
    made = scanned[2]
    saved(tmp_path / "wider", intermediate_size=64)
    with pytest.raises(InputError) as caught:
        require_fit(made, open_checkpoint(tmp_path / "wider"))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("the rank map does not fit wider")
    down = "model.layers.0.mlp.down_proj"
    assert f"  {down} is 32 x 64 in the checkpoint, but 32 x 48 in the map" in lines
    saved(tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(InputError, match=r"layers\.2\..* is in the checkpoint, but not in the map"):
        require_fit(made, open_checkpoint(tmp_path / "deeper"))
    saved(tmp_path / "other")
    rewritten(tmp_path / "other", lambda tensors: tensors[f"{Q}.weight"][0].add_(1))
    with pytest.raises(InputError, match="its weights hash to"):
        require_fit(made, open_checkpoint(tmp_path / "other"))
    require_fit(made, open_checkpoint(tmp_path / "other"), weights=False)


# other tools


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_written_by_the_command(tmp_path, scanned, capsys, kind):
    scanned[2].save(tmp_path / "map.json")
    out = tmp_path / "x" / f"out{FORMATS[kind].suffix}"
    assert main(["export", str(tmp_path / "map.json"), "--format", kind, "--out", str(out)]) == 0
    assert out.stat().st_size > 100
    assert str(out) in capsys.readouterr().out


def test_names_that_look_like_formulas_are_text_in_csv_alone(tmp_path, scanned):
    first, second, *rest = scanned[2].modules
    odd = (dataclasses.replace(first, name="=cmd|' /C calc'!A0"),
           dataclasses.replace(second, role="@SUM(1)"))  # fmt: skip
    made = dataclasses.replace(scanned[2], modules=(*odd, *rest))
    for kind in ("csv", "parquet"):
        export(made, kind, tmp_path / kind)
    table, exact = pandas.read_csv(tmp_path / "csv"), pandas.read_parquet(tmp_path / "parquet")
    assert table.name[0] == "'=cmd|' /C calc'!A0"
    assert table.role[1] == "'@SUM(1)"
    assert (exact.name[0], exact.role[1]) == ("=cmd|' /C calc'!A0", "@SUM(1)")
    numbers = [name for name in exact if exact[name].dtype.kind in "if"]
    pandas.testing.assert_frame_equal(table[numbers], exact[numbers])


def test_tables_hold_every_matrix(tmp_path, scanned):
    made = scanned[2]
    export(made, "csv", tmp_path / "a.csv")
    export(made, "parquet", tmp_path / "a.parquet")
    expected = [dataclasses.asdict(module) for module in made.modules]
    # pandas below 3 rounds what it reads by default
    table = pandas.read_csv(tmp_path / "a.csv", float_precision="round_trip")
    assert table.to_dict("records") == expected
    assert pandas.read_parquet(tmp_path / "a.parquet").to_dict("records") == expected
    kept = pyarrow.parquet.read_schema(tmp_path / "a.parquet").metadata[b"spectra"]
    assert json.loads(kept)["err"] == made.err


def test_an_exported_json_is_the_map(tmp_path, scanned):
    export(scanned[2], "json", tmp_path / "a.json")
    assert spectra.RankMap.load(tmp_path / "a.json") == scanned[2]


def test_names_with_ranks_and_ratios(tmp_path, scanned):
    made = scanned[2]
    for kind in ("ranks", "ratios", "asvd"):
        export(made, kind, tmp_path / f"{kind}.json")
    read = {kind: json.loads((tmp_path / f"{kind}.json").read_text()) for kind in ("ranks", "asvd")}
    assert read["ranks"] == made.ranks
    assert read["asvd"]["truncation_ranks"] == {m.name: m.rank for m in made.modules if m.factored}
    ratios = json.loads((tmp_path / "ratios.json").read_text())
    assert sum(ratios[m.name] * m.params_dense for m in made.modules) == made.parameters


def test_peft_builds_adapters_of_the_ranks_of_the_map(tmp_path, scanned):
    from peft import LoraConfig, get_peft_model

    made = scanned[2]
    export(made, "peft", tmp_path / "adapter_config.json")
    config = LoraConfig.from_pretrained(tmp_path)
    model = saved(tmp_path / "model")
    adapted = get_peft_model(model, config)
    found = {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A") and "default" in getattr(module, "lora_A", {})
    }
    assert found == {m.name: (m.rank, 1.0) for m in made.lrc}
    assert made.lrc
    for m in made.lrc:
        shape = adapted.get_submodule(f"base_model.model.{m.name}").lora_A["default"].weight.shape
        assert shape == (m.rank, m.cols)


def test_a_name_is_no_pattern_that_matches_another(tmp_path):
    from peft import LoraConfig, get_peft_model

    deep = {"num_hidden_layers": 12}
    model = saved(tmp_path / "model", **deep)
    made = allocate(spectra.scan(tmp_path / "model", tmp_path / "a.zarr"), err=0.6)
    export(made, "peft", tmp_path / "adapter_config.json")
    adapted = get_peft_model(model, LoraConfig.from_pretrained(tmp_path))
    for m in made.modules:  # layers 1 and 11, for one
        module = adapted.get_submodule(f"base_model.model.{m.name}")
        assert hasattr(module, "lora_A") == (m.kind == "LRC")
        if m.kind == "LRC":
            assert module.r["default"] == m.rank


def test_a_recipe_ignores_the_lrcs_and_the_head(tmp_path, scanned):
    import yaml

    export(scanned[2], "llm-compressor", tmp_path / "a.yaml")
    recipe = yaml.safe_load((tmp_path / "a.yaml").read_text())
    assert recipe == {"ignore": ["lm_head", *(m.name for m in scanned[2].lrc)]}


def test_the_table_to_read_marks_lrcs(tmp_path, scanned):
    export(scanned[2], "table", tmp_path / "a.txt")
    lines = (tmp_path / "a.txt").read_text().splitlines()
    assert lines[0].startswith("model: welore, ERR 0.5")
    marked = sum(line.count("*") for line in lines[4:])
    assert marked == len(scanned[2].lrc)


def test_a_map_without_lrcs_has_no_adapters(tmp_path, scanned):
    none = allocate(scanned[1], err=0.0)
    with pytest.raises(InputError, match="the map has no LRC"):
        export(none, "peft", tmp_path / "a.json")
    with pytest.raises(InputError, match="there are: json, csv"):
        export(none, "xml", tmp_path / "a.xml")


# the path


def test_the_path_has_the_map_of_every_err(scanned):
    _, run, _ = scanned
    path = compression_path(candidates_of(run), spacing=0.05)
    assert path.target.to_numpy().tolist() == sorted(path.target.to_numpy().tolist())
    for row in range(0, path.sizes["target"], 3):
        point = path.isel(target=row)
        made = allocate(run, err=float(point.target))
        assert point["rank"].to_numpy().tolist() == list(made.ranks.values())
        assert float(point.threshold) == made.threshold
        assert (int(point.parameters), int(point["bytes"])) == (made.parameters, made.bytes)
        assert (float(point.budget), float(point.err)) == (made.budget, made.err)
        assert int(point.lrc) == len(made.lrc)
        np.testing.assert_allclose(point.relative_error, [m.relative_error for m in made.modules],
                                   rtol=1e-6)  # fmt: skip
    for name, array in path.variables.items():
        assert {"long_name", "units"} <= set(array.attrs) or array.dims == ("matrix",), name


def test_the_path_lies_beside_the_spectra_and_is_replaced(tmp_path, capsys, recwarn):
    saved(tmp_path / "model")
    place = tmp_path / "a.zarr"
    spectra.scan(tmp_path / "model", place)
    assert main(["path", str(place), "--spacing", "0.1"]) == 0
    assert "group path" in capsys.readouterr().out
    assert spectra.open(place)["path"].sizes["target"] == 10
    write_path(place, spacing=0.2)
    recwarn.clear()
    tree = xr.open_datatree(place, engine="zarr")
    assert not recwarn.list
    assert tree["path"].sizes["target"] == 5
    assert tree["path"]["role"].to_numpy().tolist()[:2] == ["q", "k"]
    assert spectra.verify(place).whole
    assert main(["path", str(place), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"target", "err", "threshold", "budget", "parameters", "bytes", "lrc"} <= set(found)
    assert main(["path", str(place), "--spacing", "0"]) == 2


def test_a_run_has_a_path_and_a_map_too(store):
    run = spectra.open(store)
    made = allocate(run, err=0.4)
    assert made.err == pytest.approx(0.4, abs=0.002)
    assert made.model.sha256 is None
    write_path(store)
    assert spectra.open(store)["path"].attrs["step"] == 7
    assert allocate(run, err=0.4, step=0).ranks != made.ranks


@pytest.mark.parametrize("family", ["gpt_neox", "gpt_oss", "phi3"])
def test_other_families_have_maps(tmp_path, family):
    assert family in SIZES
    model = saved(tmp_path / "model", family)
    made = allocate(spectra.scan(model, tmp_path / "a.zarr"), err=0.5)
    assert made.err == pytest.approx(0.5, abs=0.01)
    require_fit(made, open_checkpoint(tmp_path / "model"))
    assert isinstance(model, torch.nn.Module)


def test_fused_layers_are_adapted_whole_or_listed(tmp_path, capsys):
    from peft import LoraConfig, get_peft_model

    model = saved(tmp_path / "model", "gpt_neox")
    made = allocate(spectra.scan(tmp_path / "model", tmp_path / "a.zarr"), err=0.6)
    fused = "gpt_neox.layers.0.attention.query_key_value"
    assert len(made.fused[fused]) == 3
    made.save(tmp_path / "map.json")
    out = tmp_path / "adapter_config.json"
    assert main(["export", str(tmp_path / "map.json"), "--format", "peft", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    adapted = get_peft_model(model, LoraConfig.from_pretrained(tmp_path))
    for m in made.lrc:
        layer = next((n for n, parts in made.fused.items() if m.name in parts), m.name)
        module = adapted.get_submodule(f"base_model.model.{layer}")
        assert hasattr(module, "lora_A") != (f"left out: {m.name}, fused with N-LRCs" in said)
    export(made, "llm-compressor", tmp_path / "a.yaml")
    names = {name for name, _ in model.named_modules()}
    listed = re.findall(r'"(.*)"', (tmp_path / "a.yaml").read_text())
    assert all(n == "lm_head" or f"base_model.model.{n}" in names or n in names for n in listed)


def test_a_map_prints_as_the_table_and_is_short_elsewhere(recorded_store, tmp_path, capsys):
    rank_map = spectra.allocate(recorded_store, err=0.4)
    rank_map.save(tmp_path / "m.json")
    out = tmp_path / "m.txt"
    assert main(["export", str(tmp_path / "m.json"), "--format", "table", "--out", str(out)]) == 0
    capsys.readouterr()
    print(rank_map)
    assert capsys.readouterr().out == out.read_text()
    assert f"{rank_map}" == str(rank_map)
    assert len(repr(rank_map)) < 200
    assert repr(rank_map) == (
        f"<RankMap of {rank_map.model.name or 'a checkpoint'} by welore: {len(rank_map.modules)} "
        f"matrices, {len(rank_map.lrc)} LRC, ERR {rank_map.err:.4f}, budget {rank_map.budget:.4f}>"
    )
    named = dataclasses.replace(rank_map, model=Model("<script>"))
    assert "&lt;script&gt;: welore" in named._repr_html_()
