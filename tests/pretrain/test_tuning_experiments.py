"""Experiments that finetune: runs are made once, and what they say of the paper is measured."""

import json

import pytest

from data.errors import InputError
from pretrain.experiments import lab
from pretrain.experiments.results import RESULTS
from pretrain.experiments.run import run_tuning
from pretrain.finetuning.run import finetune
from spectra.cli import main
from spectra.experiments.settings import Settings
from spectra.experiments.tuning import Tuning
from tests.pretrain.tuned import tuned

TUNING = Tuning(steps=2, tuning_batch=2, questions=4, tasks=("coinflip",), galore_rank=8)


def made(train: str, loss: float, **changes) -> dict:
    row = {
        "err": 0.5,
        "train": train,
        "validation_loss": loss,
        "validation_perplexity": 2.718**loss,
        "step_tokens_per_second": 100.0,
        "trained_parameters": 10,
        "evaluations": [
            {"step": 0, "tokens": 0, "train_loss": None, "validation_loss": 5.0},
            {"step": 2, "tokens": 64, "train_loss": 4.0, "validation_loss": loss},
        ],
        "accuracy": 0.5,
        "accuracy_low": 0.2,
        "accuracy_high": 0.8,
        "correct": 2,
        "total": 4,
        "unparsed": 1,
    }
    return row | changes


def test_an_experiment_says_where_it_is_unlike_the_paper():
    good = list(RESULTS["figure5"].claims([made("lrc", 3.0), made("nlrc", 4.0)]))
    bad = list(RESULTS["figure5"].claims([made("lrc", 4.0), made("nlrc", 3.0)]))
    assert good[0].startswith("as in the paper")
    assert bad[0].startswith("UNLIKE the paper")
    gains = list(RESULTS["figure1"].claims([made("lrc", 4.2), made("full", 4.0)]))
    assert "80% of what full finetuning gains" in gains[1]
    rows = [made(t, 3.0) for t in ("lora", "galore")] + [made("lrc", 3.5)]
    assert next(RESULTS["table4"].claims(rows)).startswith("UNLIKE")
    (_, interval) = RESULTS["table5"].claims([made(t, 3.0) for t in ("lrc", "lora", "galore")])
    assert "3 of 12 answers could not be read" in interval


def test_runs_are_made_once_and_written(shared, tmp_path, monkeypatch):
    stories = str(shared / "data/checkpoints/stories260K")
    asked = []

    def run(self, name, err, train, seed, own):
        asked.append(name)
        self.compressed(err)
        return {k: v for k, v in made(train, 3.0).items() if k not in ("err", "train")}

    monkeypatch.setattr(lab.Lab, "_run", run)
    settings = Settings(data=str(shared / "data/text/books.jsonl.gz"), seq_len=32)
    for _ in range(2):
        outcome = run_tuning("table5", stories, settings, TUNING, tmp_path)
    assert len(asked) == len(set(asked)) == 3 + 3 * 4
    assert {path.name for path in outcome.files} == {
        "table5.csv", "table5.html", "table5.txt", "results.json",
    }  # fmt: skip
    with pytest.raises(InputError, match="results of other settings"):
        run_tuning("table5", stories, settings, Tuning(steps=3), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RESULTS))
def test_every_experiment_runs_as_a_command(shared, tmp_path, name, capsys):
    arguments = ["experiment", name, str(shared / "data/checkpoints/stories260K"), "--json"]
    arguments += ["--data", str(shared / "data/text/books.jsonl.gz"), "--seq-len", "128"]
    arguments += ["--steps", "2", "--questions", "4", "--tasks", "coinflip", "--galore-rank", "8"]
    arguments += ["--task-data", str(shared / "data/tasks"), "--tuning-errs", "0.5"]
    arguments += ["--task-errs", "0", "0.5", "--out", str(tmp_path)]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["claims"]
    assert all(row["tokens"] > 0 for row in found["rows"])


def test_a_task_is_learnt_and_asked(shared, tmp_path):
    stories = str(shared / "data/checkpoints/stories260K")
    options = tuned(
        stories, "pydocs", train="full", task="coinflip", seq_len=256, questions=6,
        task_data=str(shared / "data/tasks"), steps=12, eval_every=6, checkpoint_every=12,
        save="adapter", learning_rate=3e-3,
    )  # fmt: skip
    summary = finetune(options, tmp_path / "run")
    assert (
        summary["evaluations"][-1]["validation_loss"]
        < 0.5 * (summary["evaluations"][0]["validation_loss"])
    )
    assert summary["total"] == 6
    assert summary["unparsed"] == 0  # it has learnt to say yes or no
    assert summary["accuracy_low"] <= summary["accuracy"] <= summary["accuracy_high"]
    manifest = json.loads((tmp_path / "run/data.json").read_text())
    assert manifest["test_questions"] == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("nothing",)}, "no task 'nothing'"),
        ({"compression": "magic"}, "no compression"),
        ({"tuning_err": 1.0}, "from 0 up to 1"),
        ({"steps": 0}, "--steps is at least 1"),
        ({"seeds": ()}, "--seeds"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        Tuning(**changes)
