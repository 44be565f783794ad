"""Experiments that finetune: runs are made once, and what they say of the paper is measured."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spectra.cli import main
from spectra.evaluation.tasks import Accuracy
from spectra.experiments.child import FailedError, finished
from spectra.experiments.experiment import Outcome
from spectra.experiments.registry import EXPERIMENTS
from spectra_data.errors import InputError
from spectra_data.integrity import sealed
from spectra_pretrain.experiments import lab
from spectra_pretrain.experiments.comparison import Comparison
from spectra_pretrain.experiments.summary import Sample
from spectra_pretrain.finetuning.run import finetune
from tests.pretrain.tuned import tuned

NAMES = [name for name in EXPERIMENTS if isinstance(EXPERIMENTS[name], Comparison)]
GIVEN = {
    "steps": 2, "tuning_batch": 2, "questions": 4, "tasks": ("coinflip",), "galore_rank": 8,
    "seq_len": 32,
}  # fmt: skip


def settings(name: str, **changes):
    """Of an experiment: those that it has."""
    kind = EXPERIMENTS[name].settings
    known = {field.name for field in dataclasses.fields(kind)}
    return kind(**{k: v for k, v in (GIVEN | changes).items() if k in known})


def made(train: str, loss: float, **changes) -> dict:
    row = {
        "err": 0.5,
        "train": train,
        "task": "coinflip",
        "seed": 0,
        "validation_loss": loss,
        "validation_perplexity": 2.718**loss,
        "step_tokens_per_second": 100.0,
        "trained_parameters": 10,
        "gradient_bytes": 40,
        "optimizer_bytes": 80,
        "peak_memory_bytes": 200,
        "tokens": 64,
        "train_loss": 4.0,
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
    good = list(EXPERIMENTS["figure5"].claims([made("lrc", 3.0), made("nlrc", 4.0)]))
    bad = list(EXPERIMENTS["figure5"].claims([made("lrc", 4.0), made("nlrc", 3.0)]))
    assert good[0].startswith("as in the paper")
    assert bad[0].startswith("UNLIKE the paper")
    gains = list(EXPERIMENTS["figure1"].claims([made("lrc", 4.2), made("full", 4.0)]))
    assert gains[0].startswith("UNLIKE")
    assert "80% of what full finetuning gains" in gains[1]
    level = next(EXPERIMENTS["figure1"].claims([made("lrc", 4.001), made("full", 4.0)]))
    assert level.startswith("undecided")
    rows = [made(t, 3.0) for t in ("lora", "galore")] + [made("lrc", 3.5)]
    assert next(EXPERIMENTS["table4"].claims(rows)).startswith("UNLIKE")
    (_, interval) = EXPERIMENTS["table5"].claims([made(t, 3.0) for t in ("lrc", "lora", "galore")])
    assert "3 of 12 answers could not be read" in interval


def test_seeds_say_what_may_be_chance():
    def runs(lrc: list[float], nlrc: list[float]) -> list[dict]:
        named = [("lrc", loss) for loss in lrc] + [("nlrc", loss) for loss in nlrc]
        seeds = [*range(len(lrc)), *range(len(nlrc))]
        return [made(t, x, seed=s) for (t, x), s in zip(named, seeds, strict=True)]

    claims = EXPERIMENTS["figure5"].claims
    apart = next(claims(runs([3.0, 3.1, 3.05], [3.5, 3.6, 3.55])))
    assert apart.startswith("as in the paper")
    assert "±" in apart
    # the means differ by more than 1 %, the seeds by more than that
    assert next(claims(runs([3.0, 3.6, 3.1], [3.1, 3.5, 3.4]))).startswith("undecided")
    assert next(claims(runs([3.0], [3.001]))).startswith("undecided")
    # every seed by itself differs from itself by as much
    assert next(claims(runs([3.0, 3.4, 3.2], [3.1, 3.51, 3.3]))).startswith("as in the paper")
    (row, _) = EXPERIMENTS["figure5"].table(runs([3.0, 3.1, 3.05], [3.5, 3.6, 3.55]))
    assert row["train"] == "lrc"
    assert "±" in row["validation_perplexity"]
    assert row["trained_parameters"] == 10
    lacking = runs([3.0, 3.1], [3.5, 3.6])
    lacking[1]["step_tokens_per_second"] = None
    (row, _) = EXPERIMENTS["figure5"].table(lacking)
    assert row["step_tokens_per_second"] is None


@pytest.mark.parametrize("spread", [1e-3, 0.0])
def test_level_is_what_seeds_show_to_be_level(spread):
    one = Sample((3.0, 3.0 + spread, 3.0 - spread))
    assert one.against(one) == "level"
    assert one.against(Sample((4.0, 4.0, 4.0))) == "below"
    assert Sample((4.0, 4.0, 4.0)).against(one) == "above"
    assert Sample((3.0, 3.3)).against(Sample((3.1, 3.1))) == "open"  # not known to be level


def asked(train: str, share: float, total: int, seed: int = 0) -> dict:
    low, high = Accuracy(round(share * total), total, 0).interval
    found = {"accuracy": share, "accuracy_low": low, "accuracy_high": high, "total": total}
    return made(train, 3.0, seed=seed, **found)


def test_few_questions_say_little():
    def said(lrc: float, lora: float, total: int) -> str:
        shares = {"lrc": lrc, "lora": lora, "galore": 0.0}
        return next(EXPERIMENTS["table5"].claims([asked(t, a, total) for t, a in shares.items()]))

    assert said(0.6, 0.5, 20).startswith("undecided")
    assert said(1.0, 0.0, 1).startswith("undecided")
    assert said(0.6, 0.5, 2000).startswith("as in the paper")
    assert said(0.5, 0.6, 2000).startswith("UNLIKE")
    # enough questions, but seeds that differ by more than methods do
    shares = {"lrc": (0.6, 0.8), "lora": (0.72, 0.58), "galore": (0.1, 0.1)}
    rows = [asked(t, a, 3000, seed) for t, of in shares.items() for seed, a in enumerate(of)]
    assert next(EXPERIMENTS["table5"].claims(rows)).startswith("undecided")
    # the same answer with every seed, and few questions
    rows = [asked(t, 0.6, 20, seed) for t in shares for seed in (0, 1)]
    assert next(EXPERIMENTS["table5"].claims(rows)).startswith("undecided")
    (row, *_) = EXPERIMENTS["table5"].table([asked("lrc", 0.6, 20)])
    assert row == {"err": 0.5, "train": "lrc", "coinflip": "60", "mean": "60", "unparsed": 1}


def test_runs_are_made_once_for_all_experiments_of_a_lab(shared, tmp_path, monkeypatch):
    stories = str(shared / "data/checkpoints/stories260K")
    calls = []

    def run(command, what):
        calls.append(command)
        Path(command[command.index("--out") + 1]).mkdir(parents=True)
        return made("any", 3.0)

    monkeypatch.setattr(lab, "finished", run)
    places = {
        "data": str(shared / "data/text/books.jsonl.gz"),
        "task_data": str(shared / "data/tasks"),
        "lab": tmp_path / "lab",
    }

    def experiment(name: str, out: str = "", **changes) -> Outcome:
        own = settings(name, **places, **changes)
        return EXPERIMENTS[name].run(stories, own, tmp_path / (out or name))

    for _ in range(2):
        outcome = experiment("table5")
    assert len(calls) == 3 + 3 * 4
    assert {path.name for path in outcome.files} == {
        "table5.csv", "table5.html", "table5.txt", "table5.json",
    }  # fmt: skip
    drawn = (tmp_path / "table5/table5.html").read_text()
    assert '"range":[0.0,1.0]' in drawn  # noise does not fill the figure
    experiment("figure1")
    assert len(calls) == 15 + 2
    experiment("figure5")  # whose LRC-only run is figure 1's
    assert len(calls) == 15 + 3
    experiment("figure1", "seeds", seeds=(0, 1))
    assert len(calls) == 15 + 5
    experiment("figure1", steps=3)
    assert len(calls) == 15 + 7
    assert len(list((tmp_path / "lab/compressed").iterdir())) == 3


def test_the_precision_of_a_labs_runs_is_kept(shared, tmp_path, monkeypatch):
    stories = str(shared / "data/checkpoints/stories260K")
    computed = []

    def run(command, what):
        precision = command[command.index("--precision") + 1]
        out = Path(command[command.index("--out") + 1])
        out.mkdir(parents=True)
        fields = {"checkpoint": "model", "precision": precision}
        (out / "finetune.json").write_text(json.dumps(fields))
        computed.append(precision)
        return made("any", 3.0)

    monkeypatch.setattr(lab, "finished", run)
    data = str(shared / "data/text/books.jsonl.gz")

    def experiment(native: str, **changes) -> None:
        monkeypatch.setattr("spectra_pretrain.machine.suited", lambda device: native)
        EXPERIMENTS["figure1"].run(stories, settings("figure1", data=data, **changes), tmp_path)
        written = json.loads((tmp_path / "figure1.json").read_text())
        assert written["settings"]["precision"] == computed[-1]

    experiment("float32")
    experiment("bfloat16", seeds=(0, 1))  # on another machine
    assert computed == ["float32"] * 4
    experiment("float32", precision="bfloat16")
    experiment("bfloat16", seeds=(2,))
    assert computed[4:] == ["bfloat16"] * 4


def test_a_run_that_fails_costs_no_other(shared, tmp_path, monkeypatch, capsys):
    stories = str(shared / "data/checkpoints/stories260K")

    def run(command, what):
        if "galore" in command and "strategyqa" in command:
            raise FailedError(f"{what} failed: the loss is nan")
        return made("any", 3.0)

    monkeypatch.setattr(lab, "finished", run)
    arguments = ["experiment", "table5", stories, "--seq-len", "32", "--out", str(tmp_path)]
    arguments += ["--task-data", str(shared / "data/tasks"), "--task-errs", "0.5", "--steps", "2"]
    assert main([*arguments, "--tasks", "coinflip", "strategyqa", "--json"]) == 1
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert len(found["rows"]) == 7
    assert found["claims"] == ["not compared at ERR 50%; runs that failed there: 1"]
    assert "strategyqa-0.5-galore-0" in said.err
    assert "the loss is nan" in said.err
    table = {row["train"]: row for row in EXPERIMENTS["table5"].table(found["rows"])}
    assert table["galore"]["strategyqa"] is None
    assert table["galore"]["mean"] is None
    assert table["lrc"]["mean"] == "50"
    assert main([*arguments, "--tasks", "strategyqa", "coinflip"]) == 1
    assert "50" in capsys.readouterr().out


def test_a_figure_draws_means_over_seeds():
    rows = [made(t, 3.0 + seed, seed=seed) for t in ("lrc", "full") for seed in (0, 1)]
    for row in rows:  # a task's questions have other tokens with every seed
        row["evaluations"][-1]["tokens"] += 10 * row["seed"]
    assert list(EXPERIMENTS["figure8"].points(rows)) == [
        (0, 5.0, "lrc"), (69, 3.5, "lrc"), (0, 5.0, "full"), (69, 3.5, "full"),
    ]  # fmt: skip


def test_losses_that_hardly_differ_are_no_verdict():
    def said(lrc: float, lora: float) -> str:
        losses = {"lrc": lrc, "full": 0.36, "lora": lora}
        return next(EXPERIMENTS["figure8"].claims([made(t, loss) for t, loss in losses.items()]))

    assert said(0.370, 0.371).startswith("undecided")
    assert said(0.370, 0.380).startswith("as in the paper")


def test_what_is_missing_is_said_before_the_first_run(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "finished", lambda *_: pytest.fail("a run was begun"))
    stories = str(shared / "data/checkpoints/stories260K")
    shutil.copytree(shared / "data/tasks/coin_flip", tmp_path / "tasks/coin_flip")
    own = settings("table5", tasks=("coinflip", "svamp"), task_data=str(tmp_path / "tasks"))
    with pytest.raises(InputError, match="SVAMP"):
        EXPERIMENTS["table5"].run(stories, own, tmp_path / "a")
    own = settings("figure1", train_data=str(tmp_path / "nothing.txt"))
    with pytest.raises(InputError, match="nothing"):
        EXPERIMENTS["figure1"].run(stories, own, tmp_path / "b")


def test_the_last_line_of_a_run_that_fails_is_told():
    code = "import sys; print('one', file=sys.stderr); sys.exit('spectra finetune: no memory')"
    with pytest.raises(FailedError, match="the run failed: no memory"):
        finished([sys.executable, "-c", code], "the run")
    killed = "import os; os.kill(os.getpid(), 9)"
    with pytest.raises(FailedError, match="the run failed: it was killed by SIGKILL"):
        finished([sys.executable, "-c", killed], "the run")
    wrong = "import sys; print('wrong input', file=sys.stderr); sys.exit(2)"
    with pytest.raises(InputError, match="wrong input") as refused:
        finished([sys.executable, "-c", wrong], "it")
    assert not isinstance(refused.value, FailedError)
    assert finished([sys.executable, "-c", "print(1); print('{\"a\": 2}')"], "it") == {"a": 2}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux kills them together")
def test_a_run_is_killed_with_its_experiment(tmp_path):
    begun = tmp_path / "begun"
    child = f"""
import os, pathlib, time
pathlib.Path({str(begun)!r}).write_text(str(os.getpid()))
time.sleep(600)
"""
    parent = f"""
import sys
from spectra.experiments.child import finished
finished([sys.executable, "-c", {child!r}], "it")
"""
    process = subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.DEVNULL)
    while not begun.exists() or not begun.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    number = int(begun.read_text())
    for _ in range(200):
        state = Path(f"/proc/{number}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("it is still there")


def test_an_experiment_whose_runs_all_fail_names_every_one(shared, tmp_path, monkeypatch, capsys):
    def run(command, what):
        raise FailedError(f"{what} failed: the loss is nan")

    monkeypatch.setattr(lab, "finished", run)
    stories = str(shared / "data/checkpoints/stories260K")
    arguments = ["--data", str(shared / "data/text/books.jsonl.gz"), "--seq-len", "32"]
    assert main(["experiment", "figure5", stories, "--out", str(tmp_path), *arguments]) == 1
    said = capsys.readouterr().err
    assert "text-0.5-lrc-0" in said
    assert "text-0.5-nlrc-0" in said
    assert len(json.loads((tmp_path / "figure5.json").read_text())["failed"]) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_saves_what_it_has(tmp_path, number):
    begun, saved = tmp_path / "begun", tmp_path / "saved"
    child = f"""
import pathlib, signal, time
def stop(*_):
    time.sleep(1)
    pathlib.Path({str(saved)!r}).touch()
    exit(130)
signal.signal(signal.SIGINT, stop)
pathlib.Path({str(begun)!r}).touch()
time.sleep(60)
"""
    parent = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from spectra.experiments.child import finished
finished([sys.executable, "-c", {child!r}], "it")
"""
    process = subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.DEVNULL)
    while not begun.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) != 0
    assert saved.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_runs_as_a_command(shared, tmp_path, name, capsys):
    arguments = ["experiment", name, str(shared / "data/checkpoints/stories260K"), "--json"]
    arguments += ["--data", str(shared / "data/text/books.jsonl.gz"), "--seq-len", "128"]
    arguments += ["--steps", "2", "--out", str(tmp_path)]
    if name.startswith("table"):
        arguments += ["--galore-rank", "8"]
    if name == "table4":
        arguments += ["--tuning-errs", "0.5"]
    if name in ("table5", "figure8"):
        arguments[arguments.index("--data") : arguments.index("--seq-len")] = []
        arguments += ["--task-data", str(shared / "data/tasks"), "--questions", "4"]
    if name == "table5":
        arguments += ["--tasks", "coinflip", "--task-errs", "0", "0.5"]
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
    ("name", "changes", "message"),
    [
        ("table5", {"tasks": ("nothing",)}, "no task 'nothing'"),
        ("figure8", {"figure8_task": "nothing"}, "no task 'nothing'"),
        ("figure1", {"compression": "magic"}, "no compression"),
        ("figure5", {"tuning_err": 0.0}, "above 0 and below 1"),
        ("table4", {"tuning_errs": (0.3, 1.0)}, "above 0 and below 1"),
        ("table5", {"task_errs": (1.0,)}, "up to 1"),
        ("figure1", {"seeds": (0, 0)}, "none twice"),
        ("figure1", {"steps": 0, "seq_len": 0}, "--seq-len is at least 1, not 0; --steps is"),
        ("table4", {"lora_rank": 0}, "--lora-rank is at least 1"),
        ("table4", {"galore_rank": 0}, "--galore-rank is at least 1"),
        ("table5", {"questions": 0}, "--questions is at least 1"),
        ("table4", {"seeds": ()}, "--seeds"),
    ],
)
def test_settings_that_cannot_be_are_refused(name, changes, message):
    with pytest.raises(InputError, match=message):
        settings(name, **changes)


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("table4", ("--errs", "0.3"), "--errs goes with table1, table2, not table4"),
        ("figure1", ("--tuning-errs", "0.3"), "--tuning-errs goes with table4, not figure1"),
        ("figure5", ("--lora-rank", "4"), "--lora-rank goes with"),
        ("table1", ("--steps", "4"), "--steps goes with"),
        ("table5", ("--data", "pydocs2"), "--data goes with"),
        ("figure1", ("--seed", "3"), "--seed goes with .* fisher, .* and --seeds repeats runs"),
        ("table1", ("--lab", "there"), "--lab goes with figure1, .* not table1"),
        ("table3", ("--calibration", "pydocs"), "--calibration goes with .* not table3"),
        ("table4", ("--calibration", "pydocs"), "--calibration goes with --compression asvd"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(
    shared, tmp_path, name, option, message, capsys
):
    stories = str(shared / "data/checkpoints/stories260K")
    assert main(["experiment", name, stories, "--out", str(tmp_path / "out"), *option]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_runs_that_an_earlier_version_made_are_not_made_again(shared, tmp_path, monkeypatch):
    stories = str(shared / "data/checkpoints/stories260K")
    own = settings("figure1", data=str(shared / "data/text/books.jsonl.gz"))
    monkeypatch.setattr(lab, "finished", lambda *_: made("any", 3.0))
    new = EXPERIMENTS["figure1"].run(stories, own, tmp_path)
    monkeypatch.setattr(lab, "finished", lambda *_: pytest.fail("a run was begun"))
    for file in tmp_path.glob("runs/*/result.json"):
        held = json.loads(file.read_text())
        (row,) = held["rows"]
        file.write_bytes(sealed({"made_of": held["settings"], "row": row}))
    assert EXPERIMENTS["figure1"].run(stories, own, tmp_path).rows == new.rows
    file.write_text(file.read_text().replace("3.0", "2.0"))
    with pytest.raises(InputError, match=f"damaged: remove {file.parent}"):
        EXPERIMENTS["figure1"].run(stories, own, tmp_path)


def test_the_written_settings_of_a_run_name_no_lab(tmp_path):
    assert "lab" not in settings("figure1", lab=tmp_path).to_dict()
