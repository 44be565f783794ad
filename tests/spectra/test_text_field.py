"""Corpora whose text is in a column of another name, in every command that reads one."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from spectra.calibration.options import Calibration
from spectra.cli import main
from spectra.compression.settings import Settings
from spectra.experiments.ledger import Ledger
from spectra.experiments.tables import ErrSettings
from spectra_data.errors import InputError

SMALL = ["--windows", "2", "--seq-len", "16"]


@pytest.fixture(scope="module")
def stories(shared):
    return str(shared / "data/checkpoints/stories260K")


@pytest.fixture(scope="module")
def corpus(shared, tmp_path_factory):
    """A corpus with its text under ``content``, and something else under ``text``."""
    text = (shared / "data/text/wikitext2-valid.txt").read_text()[:6000]
    path = tmp_path_factory.mktemp("corpus") / "corpus.parquet"
    parquet.write_table(pa.table({"content": [text], "text": ["no " * 4000]}), path)
    return str(path)


def test_every_command_reads_the_named_column(stories, corpus, tmp_path, capsys):
    def found(command, *arguments):
        assert main([command, stories, *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    content = ["--text-field", "content"]
    one, other = (found("evaluate", "--data", corpus, *SMALL, *f)["nll"] for f in ([], content))
    assert one != other
    calibrated = ["--calibration", corpus, *content, *SMALL]
    whiten = ["--budget", "0.8", "--method", "whiten"]
    made = found("compress", *whiten, *calibrated, "--out", str(tmp_path / "c"))
    assert made["compression"]["calibration"]["text_field"] == "content"
    found("prune", "--sparsity", "0.5", *calibrated, "--out", str(tmp_path / "p"))
    about = json.loads((tmp_path / "p/pruning.json").read_text())
    assert about["calibration"]["text_field"] == "content"
    assert main(["scan", stories, "--out", str(tmp_path / "s.zarr")]) == 0
    owl = ["--err", "0.5", "--method", "owl", "--checkpoint", stories, "--calibration", corpus]
    capsys.readouterr()
    maps = []
    for field in ([], content):
        out = tmp_path / f"{len(field)}.json"
        assert main(["allocate", str(tmp_path / "s.zarr"), *owl, *field, "--out", str(out)]) == 0
        maps.append([m["rank"] for m in json.loads(out.read_text())["modules"]])
    assert maps[0] != maps[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "m", "--task", "boolq"], "--text-field goes with --data"),
        (["compress", "m", "--budget", "0.8", "--out", "o"], "a text field goes with a text"),
        (["prune", "m", "--sparsity", "0.5", "--out", "o"], "a text field goes with a text"),
        (["allocate", "s.zarr", "--err", "0.5"], "--text-field goes with --calibration"),
    ],
)
def test_a_text_field_without_a_text_is_refused(arguments, message, capsys):
    assert main([*arguments, "--text-field", "content"]) == 2
    assert message in capsys.readouterr().err


def test_the_usual_field_leaves_earlier_results_valid(corpus, tmp_path):
    assert "text_field" not in Settings("whiten", Calibration("pydocs")).described()["calibration"]
    usual, named = ErrSettings(data=corpus), ErrSettings(data=corpus, text_field="content")
    assert "text_field" not in usual.to_dict()
    assert usual.fingerprints() != named.fingerprints()
    assert named.calibrated(corpus).text_field == "content"
    assert named.calibrated().text_field == "text"  # the model's own text
    ledger = Ledger(tmp_path / "results.json", usual.to_dict())
    ledger.cell({"err": 0.5}, lambda: {"perplexity": 2.0})
    assert Ledger(tmp_path / "results.json", usual.to_dict()).rows
    with pytest.raises(InputError, match=r"other settings .*text_field"):
        Ledger(tmp_path / "results.json", named.to_dict())
