"""The six downstream tasks: their files, splits, prompts, and how an answer is read.

CommonsenseQA, SVAMP, BoolQ, CoinFlip, BIG-bench date understanding and StrategyQA, in the files
that their authors publish. An answer that cannot be read is wrong, and such answers are counted.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from spectra_data.errors import InputError
from spectra_data.reading import parse_json, read_text

Kind = Literal["letter", "number", "yes/no", "true/false"]
Split = Literal["train", "test"]
LETTERS = "ABCDEFGHIJ"
OWN_SHARE = 0.7
"""Share of the test part to train on if the official training part is missing."""
CHOICE_SEED = 0
"""Seed of the order of choices if the file has none."""


@dataclass(frozen=True)
class Example:
    """A question with its answer."""

    prompt: str
    answer: str
    """Right answer, in the form that `read_answer` returns."""
    choices: int = 0
    """Number of letters to choose from."""


@dataclass(frozen=True)
class Task:
    """One of the six tasks."""

    name: str
    kind: Kind
    files: tuple[tuple[Split | None, str], ...]
    """Split and file; a file without a split is cut by `share`."""
    share: float
    """Share of the examples, from the first on, that are for training."""
    examples: Callable[[Any], Iterator[Example]]
    """Parser of one entry of the file."""


def _commonsense(entry: Any) -> Iterator[Example]:
    question = entry["question"]
    choices = " ".join(f"({c['label']}) {c['text']}" for c in question["choices"])
    last = question["choices"][-1]["label"]
    prompt = (
        f"Q: {question['stem']} Answer Choices: {choices}\nA: Among A through {last}, the answer is"
    )
    yield Example(prompt, entry["answerKey"], len(question["choices"]))


def _svamp(entry: Any) -> Iterator[Example]:
    body = entry["Body"].strip()
    body = body if body.endswith((".", "?", "!")) else f"{body}."
    prompt = f"Q: {body} {entry['Question']}\nA: The answer (arabic numerals) is"
    yield Example(prompt, _number(float(entry["Answer"])))


def _boolq(entry: Any) -> Iterator[Example]:
    prompt = f"{entry['passage']}\nQ: {entry['question']}?\nA: The answer (True or False) is"
    yield Example(prompt, "true" if entry["answer"] else "false")


def _coin_flip(entry: Any) -> Iterator[Example]:
    prompt = f"Q: {entry['question']}\nA: The answer (Yes or No) is"
    yield Example(prompt, entry["answer"].strip().lower())


def _strategy(entry: Any) -> Iterator[Example]:
    best = max(entry["target_scores"], key=entry["target_scores"].get)
    prompt = f"Q: {entry['input']}\nA: The answer (Yes or No) is"
    yield Example(prompt, best.strip().lower())


def _date(entry: Any) -> Iterator[Example]:
    choices = list(entry["target_scores"])
    best = max(choices, key=entry["target_scores"].get)
    # the file lists the right one first
    random.Random(f"{CHOICE_SEED} {entry['input']}").shuffle(choices)
    listed = " ".join(f"({LETTERS[i]}) {choice}" for i, choice in enumerate(choices))
    last = LETTERS[len(choices) - 1]
    prompt = (
        f"Q: {entry['input']} Answer Choices: {listed}\nA: Among A through {last}, the answer is"
    )
    yield Example(prompt, LETTERS[choices.index(best)], len(choices))


TASKS = {
    task.name: task
    for task in (
        Task(
            "commonsenseqa",
            "letter",
            (
                ("train", "CommonsenseQA/train_rand_split.jsonl"),
                ("test", "CommonsenseQA/dev_rand_split.jsonl"),
            ),
            0.0,
            _commonsense,
        ),
        Task("svamp", "number", ((None, "SVAMP/SVAMP.json"),), 0.7, _svamp),
        Task(
            "boolq",
            "true/false",
            (("train", "boolq/boolq_train.jsonl"), ("test", "boolq/boolq_dev.jsonl")),
            0.0,
            _boolq,
        ),
        Task("coinflip", "yes/no", ((None, "coin_flip/coin_flip.json"),), 0.7, _coin_flip),
        Task("date", "letter", ((None, "Bigbench_Date/task.json"),), 0.8, _date),
        Task("strategyqa", "yes/no", ((None, "StrategyQA/task.json"),), 0.7, _strategy),
    )
}


def load_task(name: str, folder: str | Path, split: Split = "test") -> list[Example]:
    """A task's examples, in the order of its file.

    Parameters
    ----------
    name
        One of `TASKS`.
    folder
        Folder that contains the tasks' folders, e.g. ``CommonsenseQA/dev_rand_split.jsonl``.
    split
        Official split of CommonsenseQA and BoolQ, whose labelled test set is the development set;
        for other tasks, the first part of the file or the rest.

    Raises
    ------
    InputError
        When there is no such task, or its file is missing or damaged.
    """
    if name not in TASKS:
        raise InputError(f"no task {name!r}; there are: {', '.join(TASKS)}")
    task = TASKS[name]
    path = next(Path(folder) / file for of, file in task.files if of in (None, split))
    entries = _entries(path)
    try:
        found = [example for entry in entries for example in task.examples(entry)]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"{path} does not hold the entries of {name}: {error!r}") from error
    if task.files[0][0] is not None:
        return found
    cut = int(task.share * len(found))
    return found[:cut] if split == "train" else found[cut:]


@dataclass(frozen=True)
class Splits:
    """A task's training and test examples, which do not overlap."""

    train: list[Example]
    test: list[Example]
    note: str = ""
    """Why they are not the official ones; empty if they are."""

    def fingerprint(self) -> str:
        """Hash of questions and answers."""
        text = json.dumps([[asdict(e) for e in part] for part in (self.train, self.test)])
        return hashlib.sha256(text.encode()).hexdigest()


def load_splits(name: str, folder: str | Path) -> Splits:
    """Both parts of a task.

    If the file of the official training part is missing, the first 70 % of the test part are for
    training and the rest for testing.

    Raises
    ------
    InputError
        As `load_task`.
    """
    test = load_task(name, folder, "test")
    files = dict(TASKS[name].files)
    missing = "train" in files and not Path(folder, files["train"]).exists()
    if not missing:
        return Splits(load_task(name, folder, "train"), test)
    cut = int(OWN_SHARE * len(test))
    note = (
        f"without {files['train']}, {OWN_SHARE:.0%} of {files['test']} are for training and the "
        "rest for testing"
    )
    return Splits(test[:cut], test[cut:], note)


def read_answer(kind: Kind, text: str, choices: int = 5) -> str | None:
    """The answer in a model's text; None if there is none.

    The first match of the task's kind: a letter of the choices, in brackets or by itself; a number;
    yes or no; true or false. Yes counts as true and no as false, and the other way round.
    """
    if kind == "number":
        found = re.search(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)", text)
        return None if found is None else _number(float(found[0].replace(",", "")))
    if kind == "letter":
        letters = LETTERS[:choices]
        found = re.search(rf"\(([{letters}])\)", text)
        found = found or re.search(rf"(?<![A-Za-z'])([{letters}])(?![A-Za-z'])", text)
        return None if found is None else found[1]
    words = {"yes": "yes", "no": "no", "true": "yes", "false": "no"}
    found = re.search(r"\b(yes|no|true|false)\b", text, re.IGNORECASE)
    if found is None:
        return None
    answer = words[found[1].lower()]
    return answer if kind == "yes/no" else {"yes": "true", "no": "false"}[answer]


def _entries(path: Path) -> Sequence[Any]:
    try:
        text = read_text(path)
    except InputError as error:
        raise InputError(f"{error}; set --task-data to the folder that holds the tasks") from error
    if path.suffix == ".jsonl":
        lines = enumerate(text.splitlines(), start=1)
        return [parse_json(line, f"{path}, line {n},") for n, line in lines if line.strip()]
    content = parse_json(text, str(path))
    entries = content.get("examples") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise InputError(f"{path} holds no list of examples")
    return entries


def _number(value: float) -> str:
    return str(int(value)) if abs(value) < 1e15 and value == int(value) else f"{value:g}"
