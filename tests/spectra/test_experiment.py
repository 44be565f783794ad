"""Experiments: every cell is measured once, kept, and drawn."""

import csv
import dataclasses
import json
import subprocess
import sys

import pytest

from spectra.cli import main
from spectra.experiments.bench import Bench
from spectra.experiments.experiment import Presentation
from spectra.experiments.ledger import FORMER, Ledger
from spectra.experiments.measured import MeasuredExperiment, Setup
from spectra.experiments.registry import EXPERIMENTS
from spectra.experiments.settings import DataSettings
from spectra.experiments.writing import Shape, written
from spectra.registry import Entry
from spectra_data.errors import InputError
from spectra_data.integrity import sealed


@pytest.fixture(scope="module")
def stories(shared):
    return str(shared / "data" / "checkpoints" / "stories260K")


@pytest.fixture(scope="module")
def small(shared):
    text = shared / "data" / "text"
    given = {
        "data": str(text / "c4-validation.jsonl.gz"),
        "calibration": str(text / "wikitext2-valid.txt"),
        "seq_len": 64,
        "windows": 8,
        "calibration_windows": 8,
        "errs": (0.3, 0.5),
        "budgets": (0.6,),
        "memory_errs": (0.0, 0.5),
        "contexts": (32, 64),
        "pruned_errs": (0.0, 0.5),
        "sparsities": (0.6,),
        "pruners": ("magnitude", "sparsegpt"),
    }

    def settings(name, **changes):
        """Of an experiment: those that it has."""
        kind = EXPERIMENTS[name].settings
        known = {field.name for field in dataclasses.fields(kind)}
        return kind(**{k: v for k, v in given.items() if k in known} | changes)

    return settings


def run_experiment(name, checkpoint, settings, folder):
    return EXPERIMENTS[name].run(checkpoint, settings, folder)


def silent(stage, done, count):
    """No progress."""


def perplexities(outcome):
    return {
        (row["recipe"], row.get("err_asked", row.get("budget_asked"))): row["perplexity"]
        for row in outcome.rows
    }


def test_table1_ranks_the_methods_as_the_paper_does(stories, small, tmp_path):
    outcome = run_experiment("table1", stories, small("table1"), tmp_path)
    found = perplexities(outcome)
    for err in (0.3, 0.5):
        assert found["svd, welore", err] < found["svd, uniform", err]
    rows = list(csv.DictReader((tmp_path / "table1.csv").open()))
    assert len(rows) == len(outcome.rows) == 9
    assert "Table 1" in (tmp_path / "table1.html").read_text()
    for row in outcome.rows:
        assert row["err"] == pytest.approx(row["err_asked"], abs=0.02)


def test_an_experiment_goes_on_where_it_was_killed(stories, small, tmp_path, monkeypatch):
    small = small("table2", errs=(0.5,))
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
        run_experiment("table2", stories, dataclasses.replace(small, seq_len=32), tmp_path / "t")


@pytest.mark.slow
def test_quality_beats_the_public_ways(stories, small, tmp_path):
    enough = small("quality", seq_len=128, calibration_windows=16)
    found = perplexities(run_experiment("quality", stories, enough, tmp_path))
    yardstick = found["whiten, uniform (SVD-LLM)", 0.6]
    assert found["fisher, loss, pivoted", 0.6] < yardstick
    assert yardstick < found["svd, uniform", 0.6]
    assert found["fisher, loss, pivoted", 0.6] < found["fisher, loss, factors", 0.6]


@pytest.mark.slow
def test_figure7_prunes_everything_or_what_stayed_dense(stories, small, tmp_path):
    outcome = run_experiment("figure7", stories, small("figure7"), tmp_path)
    rows = {(r["err"], r["pruner"]): r for r in outcome.rows}
    assert rows[0.0, "magnitude"]["pruned"] == 35
    assert 0 < rows[0.5, "magnitude"]["pruned"] < 35
    for err in (0.0, 0.5):
        assert rows[err, "sparsegpt"]["increase"] < rows[err, "magnitude"]["increase"]


@pytest.mark.slow
def test_table3_measures_each_checkpoint_in_its_own_process(stories, small, tmp_path):
    outcome = run_experiment("table3", stories, small("table3"), tmp_path)
    dense, half = outcome.rows
    assert half["parameters"] < dense["parameters"]
    assert half["weight_bytes"] < dense["weight_bytes"]
    assert {"peak_32", "peak_64", "prefill", "decode"} <= half.keys()
    assert not list(tmp_path.glob("compressed-*"))


def test_the_models_weights_are_put_back(stories, small, tmp_path):
    bench = Bench(Setup(stories, small("table1"), tmp_path, "cpu", silent))
    before = bench.perplexity()
    rank_map = bench.allocated("uniform", err=0.5)
    with bench.replaced(bench.products(bench.truncated("svd", rank_map, all_ranks=True))):
        assert bench.perplexity() > before
    assert bench.perplexity() == before


@pytest.mark.slow
def test_truncations_are_cut_from_one_decomposition(stories, small, tmp_path):
    bench = Bench(Setup(stories, small("table1"), tmp_path, "cpu", silent))
    rank_map = bench.allocated("uniform", err=0.5)
    kept = bench.truncated("svd", rank_map, all_ranks=True)
    bench._keep = False
    anew = bench.truncated("svd", rank_map, all_ranks=True)
    for name, factors in kept.items():
        assert float((factors.product() - anew[name].product().float()).abs().max()) < 1e-5


def test_a_damaged_ledger_is_one_line(tmp_path):
    file = tmp_path / "results.json"
    file.write_text("{")
    with pytest.raises(InputError, match="damaged: remove it"):
        Ledger(file, {})
    with pytest.raises(InputError, match=f"damaged: remove {tmp_path}, or"):
        Ledger(file, {}, remove=tmp_path)


def test_a_changed_figure_of_a_ledger_is_not_used(tmp_path):
    file = tmp_path / "results.json"
    Ledger(file, {}).cell({"err": 0.5}, lambda: {"perplexity": 12.5})
    assert Ledger(file, {}).rows == [{"err": 0.5, "perplexity": 12.5}]
    file.write_text(file.read_text().replace("12.5", "11.5"))
    with pytest.raises(InputError, match="damaged"):
        Ledger(file, {})


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


def test_every_experiment_has_the_name_that_it_is_registered_under():
    assert all(EXPERIMENTS[name].name == name for name in EXPERIMENTS)


def test_results_of_a_version_that_wrote_all_options_go_on(tmp_path):
    file, rows = tmp_path / "results.json", [{"err": 0.5, "peak_32": 7}]
    own = {"experiment": "table3", "memory_errs": [0.5]}
    others = dict.fromkeys(FORMER - own.keys(), 1)
    file.write_bytes(sealed({"settings": own | others, "rows": rows}))
    assert Ledger(file, own).rows == rows
    with pytest.raises(InputError, match=r"other settings \(memory_errs\)"):
        Ledger(file, own | {"memory_errs": [0.3]})
    file.write_bytes(sealed({"settings": own | {"from_a_later_version": 1}, "rows": rows}))
    with pytest.raises(InputError, match=r"other settings \(from_a_later_version\)"):
        Ledger(file, own)


@dataclasses.dataclass(frozen=True)
class LetterSettings(DataSettings):
    """Options of `letters`."""

    letters: tuple[str, ...] = ("a", "e")
    """Letters to count."""


def letters(setup, ledger):
    """How often a letter occurs in the checkpoint's address."""
    for letter in setup.settings.letters:
        yield ledger.cell(
            {"letter": letter}, lambda one=letter: {"count": setup.checkpoint.count(one)}
        )


LETTERS = MeasuredExperiment(
    "letters",
    LetterSettings,
    Presentation("Letters", ("letter", "count"), "count", "count", log=False),
    letters,
    lambda row: row["letter"],
)


def test_a_new_experiment_is_one_file_and_a_line(stories, shared, tmp_path, monkeypatch, capsys):
    entry = Entry("how often letters occur", f"{__name__}:LETTERS")
    monkeypatch.setitem(EXPERIMENTS.entries, "letters", entry)
    with pytest.raises(SystemExit):
        main(["experiment", "letters", "--help"])
    own = capsys.readouterr().out
    assert "Letters to count." in own
    assert "--data" in own
    assert "--errs" not in own
    text = str(shared / "data" / "text" / "c4-validation.jsonl.gz")
    given = ["experiment", "letters", stories, "--data", text, "--out", str(tmp_path), "--letters"]
    assert main([*given, "s", "q", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows == [{"letter": one, "count": stories.count(one)} for one in "sq"]
    assert {
        path.name for path in tmp_path.iterdir() if path.suffix in (".csv", ".html", ".json")
    } == {"letters.csv", "letters.html", "results.json"}
    assert main(["experiment", "table1", stories, "--letters", "s"]) == 2
    assert "--letters goes with letters, not table1: leave it out" in capsys.readouterr().err


def test_labels_that_look_like_formulas_are_text_in_csv_alone(tmp_path):
    shape = Shape("odd", LETTERS.presentation, [])
    rows = [{"letter": "=1+1", "count": -2}]
    outcome = written(shape, rows, tmp_path, "", tmp_path / "results.json")
    assert (tmp_path / "odd.csv").read_text() == "letter,count\n'=1+1,-2\n"
    assert outcome.rows == tuple(rows)


def test_an_experiment_that_is_not_there_is_one_line(capsys):
    assert main(["experiment", "table9", "m"]) == 2
    assert "no experiment 'table9'; there are: table1, " in capsys.readouterr().err
    for arguments in ([], ["--errs", "0.5"]):
        assert main(["experiment", *arguments]) == 2
        assert "name an experiment first: table1, " in capsys.readouterr().err


@pytest.mark.parametrize("figure", ["figure2", "figure3", "figure4", "figure6"])
def test_figures_that_a_store_shows_point_to_the_report(capsys, figure):
    for arguments in ([figure], [figure, "m", "--errs", "0.5"]):
        assert main(["experiment", *arguments]) == 2
        said = capsys.readouterr().err
        assert f"{figure} is no experiment: `spectra report STORE` draws it, from the store" in said


def test_the_help_of_the_command_imports_no_experiment():
    code = """
import sys
from spectra.cli import main
try:
    main(["experiment", "--help"])
except SystemExit:
    print([name for name in sys.modules if name.startswith("spectra_pretrain")])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listed, loaded = found.stdout.rsplit("\n", 2)[:2]
    assert loaded == "[]"
    words = " ".join(listed.replace("│", " ").split())
    for name, about in EXPERIMENTS.entries.items():
        assert f"{name}: {about.summary}" in words


def test_a_folder_may_have_the_name_of_an_experiment(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", "--out", "table1", "--json", "table4", "m", "--errs", "1"]) == 2
    assert "--errs goes with table1, table2, not table4" in capsys.readouterr().err


def test_results_of_other_content_are_not_taken_for_these(stories, small, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("once upon a time there was a fox. " * 400)
    settings = small("table1", data=str(text), errs=(), windows=2)
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
