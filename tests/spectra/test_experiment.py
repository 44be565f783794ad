"""Experiments: every cell is measured once, kept, and drawn."""

import csv
import dataclasses
import json

import pytest

from spectra.cli import main
from spectra.experiments import tables
from spectra.experiments.bench import Bench
from spectra.experiments.ledger import Ledger
from spectra.experiments.run import EXPERIMENTS, run_experiment
from spectra.experiments.settings import Settings
from spectra_data.errors import InputError


@pytest.fixture(scope="module")
def stories(shared):
    return str(shared / "data" / "checkpoints" / "stories260K")


@pytest.fixture(scope="module")
def small(shared):
    text = shared / "data" / "text"
    return Settings(
        data=str(text / "c4-validation.jsonl.gz"),
        calibration=str(text / "wikitext2-valid.txt"),
        seq_len=64,
        windows=8,
        calibration_windows=8,
        errs=(0.3, 0.5),
        budgets=(0.6,),
        memory_errs=(0.0, 0.5),
        contexts=(32, 64),
        pruned_errs=(0.0, 0.5),
        sparsities=(0.6,),
        pruners=("magnitude", "sparsegpt"),
    )


def silent(stage, done, count):
    """No progress."""


def perplexities(outcome):
    return {
        (row["recipe"], row.get("err_asked", row.get("budget_asked"))): row["perplexity"]
        for row in outcome.rows
    }


def test_table1_ranks_the_methods_as_the_paper_does(stories, small, tmp_path):
    outcome = run_experiment("table1", stories, small, tmp_path)
    found = perplexities(outcome)
    for err in small.errs:
        assert found["svd, welore", err] < found["svd, uniform", err]
    rows = list(csv.DictReader((tmp_path / "table1.csv").open()))
    assert len(rows) == len(outcome.rows) == 9
    assert "Table 1" in (tmp_path / "table1.html").read_text()
    for row in outcome.rows:
        assert row["err"] == pytest.approx(row["err_asked"], abs=0.02)


def test_an_experiment_goes_on_where_it_was_killed(stories, small, tmp_path, monkeypatch):
    small = dataclasses.replace(small, errs=(0.5,))
    whole = run_experiment("table2", stories, small, tmp_path / "whole")
    count, perplexity = [0], Bench.perplexity

    def killed(bench):
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        return perplexity(bench)

    monkeypatch.setattr(Bench, "perplexity", killed)
    with pytest.raises(KeyboardInterrupt):
        run_experiment("table2", stories, small, tmp_path / "t")
    kept = json.loads((tmp_path / "t" / "results.json").read_text())["rows"]
    assert len(kept) == 2
    again = run_experiment("table2", stories, small, tmp_path / "t")
    assert again.rows == whole.rows
    assert count[0] == 3 + len(whole.rows) - 2
    with pytest.raises(InputError, match=r"other settings \(seq_len\)"):
        run_experiment(
            "table2", stories, Settings(**small.to_dict() | {"seq_len": 32}), tmp_path / "t"
        )


@pytest.mark.slow
def test_quality_beats_the_public_ways(stories, small, tmp_path):
    enough = dataclasses.replace(small, seq_len=128, calibration_windows=16)
    found = perplexities(run_experiment("quality", stories, enough, tmp_path))
    yardstick = found["whiten, uniform (SVD-LLM)", 0.6]
    assert found["fisher, loss, pivoted", 0.6] < yardstick
    assert yardstick < found["svd, uniform", 0.6]
    assert found["fisher, loss, pivoted", 0.6] < found["fisher, loss, factors", 0.6]


@pytest.mark.slow
def test_figure7_prunes_everything_or_what_stayed_dense(stories, small, tmp_path):
    outcome = run_experiment("figure7", stories, small, tmp_path)
    rows = {(r["err"], r["pruner"]): r for r in outcome.rows}
    assert rows[0.0, "magnitude"]["pruned"] == 35
    assert 0 < rows[0.5, "magnitude"]["pruned"] < 35
    for err in (0.0, 0.5):
        assert rows[err, "sparsegpt"]["increase"] < rows[err, "magnitude"]["increase"]


@pytest.mark.slow
def test_table3_measures_each_checkpoint_in_its_own_process(stories, small, tmp_path):
    outcome = run_experiment("table3", stories, small, tmp_path)
    dense, half = outcome.rows
    assert half["parameters"] < dense["parameters"]
    assert half["weight_bytes"] < dense["weight_bytes"]
    assert {"peak_32", "peak_64", "prefill", "decode"} <= half.keys()
    assert not list(tmp_path.glob("compressed-*"))


def test_the_models_weights_are_put_back(stories, small, tmp_path):
    bench = Bench(stories, small, tmp_path, "cpu", silent)
    before = bench.perplexity()
    rank_map = bench.allocated("uniform", err=0.5)
    with bench.replaced(bench.products(bench.truncated("svd", rank_map, all_ranks=True))):
        assert bench.perplexity() > before
    assert bench.perplexity() == before


@pytest.mark.slow
def test_truncations_are_cut_from_one_decomposition(stories, small, tmp_path):
    bench = Bench(stories, small, tmp_path, "cpu", silent)
    rank_map = bench.allocated("uniform", err=0.5)
    kept = bench.truncated("svd", rank_map, all_ranks=True)
    bench._keep = False
    anew = bench.truncated("svd", rank_map, all_ranks=True)
    for name, factors in kept.items():
        assert float((factors.product() - anew[name].product().float()).abs().max()) < 1e-5


def test_a_damaged_ledger_is_one_line(tmp_path):
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        Ledger(tmp_path, {})


def test_a_changed_figure_of_a_ledger_is_not_used(tmp_path):
    Ledger(tmp_path, {}).cell({"err": 0.5}, lambda: {"perplexity": 12.5})
    assert Ledger(tmp_path, {}).rows == [{"err": 0.5, "perplexity": 12.5}]
    file = tmp_path / "results.json"
    file.write_text(file.read_text().replace("12.5", "11.5"))
    with pytest.raises(InputError, match="damaged"):
        Ledger(tmp_path, {})


def test_the_command_prints_a_table_and_names_its_files(stories, shared, tmp_path, capsys):
    text = str(shared / "data" / "text" / "c4-validation.jsonl.gz")
    arguments = ["experiment", "table1", stories, "--out", str(tmp_path), "--data", text]
    arguments += ["--calibration", text, "--seq-len", "64", "--windows", "4", "--errs", "0.5"]
    arguments += ["--calibration-windows", "4"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "welore" in out
    assert f"wrote {tmp_path / 'table1.csv'}" in out
    assert main([*arguments, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 5


def test_every_experiment_has_its_function():
    assert set(EXPERIMENTS) - {"table3"} <= set(vars(tables))


def test_results_of_other_content_are_not_taken_for_these(stories, small, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("once upon a time there was a fox. " * 400)
    settings = dataclasses.replace(small, data=str(text), errs=(), windows=2)
    run_experiment("table1", stories, settings, tmp_path / "out")
    text.write_text("a dog and a cat went out to play. " * 400)
    with pytest.raises(InputError, match=r"other settings \(texts\)"):
        run_experiment("table1", stories, settings, tmp_path / "out")


def test_wrong_settings_are_one_line(stories, tmp_path, capsys):
    for option, message in (
        (["--pruners", "foo"], "no pruner 'foo'"),
        (["--windows", "0"], "windows is at least 1"),
        (["--out", "/proc/x"], "cannot write /proc/x"),
    ):
        given = ["experiment", "figure7", stories, "--out", str(tmp_path), *option]
        assert main(given) == 2
        assert message in capsys.readouterr().err
