"""`spectra metrics` and the table behind it."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr

import spectra
from spectra import cli
from spectra.analysis.table import IDENTITY, to_pandas, write_table
from spectra.matrices import Matrix
from spectra.metrics.measures import MEASURES
from spectra.metrics.weightwatcher import COLUMNS
from spectra.store.layout import Contents, Layout
from spectra.store.writer import StoreWriter
from spectra_data.errors import InputError

FIXED = [
    "spectral_norm",
    "frobenius_norm",
    "nuclear_norm",
    "stable_rank",
    "effective_rank",
    "participation_ratio",
    "energy_rank_90",
    "energy_rank_99",
    "numerical_rank",
    "spectral_entropy",
    "alpha",
    "alpha_sigma",
    "x_min",
    "ks_distance",
    "tail_size",
    "hill_alpha",
    "mp_edge",
    "mp_spikes",
    "mp_soft_rank",
]
UNTESTED = [name for name in MEASURES if name not in ("alpha_error", "p_value", "verdict")]
READERS = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".json": pd.read_json}


def test_the_columns_that_scripts_rely_on_are_there(store):
    table = spectra.metrics_table(spectra.open(store))
    assert set(FIXED) <= set(table.data_vars)
    assert table.sizes == {"step": 4, "matrix": 14, "kind": 3}
    assert table["kind"].values.tolist() == ["weight", "gradient", "update"]
    for name, variable in table.data_vars.items():
        assert variable.attrs["long_name"] == MEASURES[name].long_name


def test_every_number_is_that_of_its_own_spectrum(store):
    run = spectra.open(store)
    table = spectra.metrics_table(run)
    one = run["spectra"].weight.isel(step=1, matrix=5)
    s = one.values[: min(int(one.rows), int(one.cols))].astype(float)
    cell = table.isel(step=1, matrix=5).sel(kind="weight")
    assert cell.stable_rank == pytest.approx((s**2).sum() / s[0] ** 2)
    assert cell.nuclear_norm == pytest.approx(s.sum())
    tail = spectra.heavy_tail(run["spectra"].weight, replicas=0)
    assert tail.alpha.dims == ("step", "matrix")
    np.testing.assert_allclose(tail.alpha, table.alpha.sel(kind="weight"))
    np.testing.assert_allclose(tail.x_min, table.x_min.sel(kind="weight"))


def test_a_heavy_tail_comes_with_its_tests(store):
    run = spectra.open(store)
    tail = spectra.heavy_tail(run["spectra"].gradient.isel(step=-1), replicas=10)
    assert set(tail.verdict.values) <= {"too few values", "not a power law", "undefined"}
    assert ((tail.p_value >= 0) & (tail.p_value <= 1)).all()
    with pytest.raises(InputError, match="rows"):
        spectra.heavy_tail(run["spectra"].gradient.drop_vars("rows"))


@pytest.mark.parametrize("ending", READERS)
def test_files_hold_a_row_for_every_recorded_spectrum(store, tmp_path, ending):
    out = tmp_path / f"table{ending}"
    assert cli.main(["metrics", str(store), "--out", str(out)]) == 0
    frame = READERS[ending](out)
    assert list(frame.columns) == [*IDENTITY, *UNTESTED]
    assert len(frame) == 4 * 14 * 3 - 14  # no step led to the first state
    expected = to_pandas(spectra.metrics_table(spectra.open(store)))
    pd.testing.assert_frame_equal(frame, expected, check_dtype=False, rtol=1e-6)


def test_names_that_look_like_formulas_are_text_in_csv_alone(tmp_path):
    odd = "=cmd|' /C calc'!A0"
    layout = Layout(
        (Matrix(odd, 0, "@SUM(1)", 8, 8),), 1, 1, Contents(spectra=("weight",), sketch=0)
    )
    writer = StoreWriter.create(tmp_path / "a.zarr", layout, {})
    writer.write_snapshot(0, {"spectra/weight": np.linspace(2, 1, 8, dtype=np.float32)[None]})
    writer.close()
    table = spectra.metrics_table(spectra.open(tmp_path / "a.zarr"))
    read = {}
    for ending, reader in READERS.items():
        write_table(table, tmp_path / f"a{ending}")
        read[ending] = reader(tmp_path / f"a{ending}").iloc[0]
    assert (read[".csv"].matrix, read[".csv"].role) == (f"'{odd}", "'@SUM(1)")
    for exact in (read[".parquet"], read[".json"]):
        assert (exact.matrix, exact.role) == (odd, "@SUM(1)")
        assert exact.spectral_norm == pytest.approx(read[".csv"].spectral_norm)


def test_json_on_stdout_has_the_rows(store, capsys):
    assert cli.main(["metrics", str(store), "--last", "--kinds", "weight", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["rows"]) == 14
    assert report["rows"][0]["step"] == 7
    assert set(report["rows"][0]) == {*IDENTITY, *UNTESTED}
    assert report["left_out"] == {}


def test_the_text_names_what_is_left_out_and_why(store, capsys):
    assert cli.main(["metrics", str(store), "--bootstrap", "5"]) == 0
    text = capsys.readouterr().out
    assert "left out: 14 spectra, update: no recorded step led to this state" in text
    assert "weight at step 7: medians over matrices" in text
    assert "power" in text  # how many tails are power laws


def test_weightwatchers_columns(store, tmp_path):
    out = tmp_path / "ww.csv"
    assert cli.main(["metrics", str(store), "--compat", "weightwatcher", "--out", str(out)]) == 0
    assert list(pd.read_csv(out).columns) == [*IDENTITY, *COLUMNS]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kinds", "weights"], "no spectra of 'weights'; it has weight, gradient, update"),
        (["--out", "table.xlsx"], "file name ends in .csv, .parquet, .json, not in '.xlsx'"),
        (["--bootstrap", "-1"], "--bootstrap is a number of replicas from 0 up"),
        (["--compat", "powerlaw"], "compat"),
        (["--compat", "weightwatcher", "--kinds", "update"], "weightwatcher measures weights"),
        (["--compat", "weightwatcher", "--bootstrap", "9"], "weightwatcher does not test fits"),
    ],
)
def test_wrong_input_is_one_line(store, capsys, arguments, message):
    assert cli.main(["metrics", str(store), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_file_that_cannot_be_written_is_named(store, tmp_path):
    table = spectra.metrics_table(spectra.open(store), kinds=["weight"])
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*folder\.csv"):
        write_table(table, tmp_path / "folder.csv")


def test_a_store_without_snapshots_says_so(store, capsys):
    group = zarr.open_group(store)
    for path in ("spectra/step", "sketches/step", "status/step"):
        group[path][:] = -1
    assert cli.main(["metrics", str(store)]) == 2
    assert "no snapshot yet" in capsys.readouterr().err


def test_the_docs_page_explains_every_column():
    page = (Path(__file__).parents[2] / "docs" / "measures.md").read_text()
    explained = set(re.findall(r"`(\w+)`", page))
    missing = [name for name in (*MEASURES, *COLUMNS) if name not in explained]
    assert not missing
