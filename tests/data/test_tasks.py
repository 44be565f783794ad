"""The six downstream tasks: splits, prompts, and how answers are read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectra_data.errors import InputError
from spectra_data.tasks import LETTERS, TASKS, load_splits, load_task, read_answer

SIZES = {
    "commonsenseqa": (9741, 1221), "svamp": (700, 300), "coinflip": (350, 150),
    "date": (295, 74), "strategyqa": (1603, 687),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "data" / "tasks"


@pytest.mark.parametrize("name", TASKS)
def test_every_answer_is_one_that_would_be_read(folder, name):
    examples = load_task(name, folder)
    kind = TASKS[name].kind
    assert len(examples) > 50
    for example in examples:
        assert example.prompt.startswith("Q:") or name == "boolq"
        assert read_answer(kind, f" {example.answer}.", example.choices) == example.answer


@pytest.mark.parametrize(("name", "sizes"), SIZES.items())
def test_splits_part_the_file(folder, name, sizes):
    train, test = (load_task(name, folder, split) for split in ("train", "test"))
    assert len(train) + len(test) > 0
    share = len(train) / (len(train) + len(test))
    if TASKS[name].share:
        assert share == pytest.approx(TASKS[name].share, abs=0.01)
    assert (len(train), len(test)) == sizes


@pytest.mark.parametrize("name", sorted(TASKS))
def test_no_question_is_both_learnt_and_asked(folder, name):
    splits = load_splits(name, folder)
    assert {e.prompt for e in splits.train[:200]}.isdisjoint(e.prompt for e in splits.test[:200])
    whole = [*splits.train, *splits.test]
    if splits.note:
        assert whole == load_task(name, folder)
        assert "for training and the rest for testing" in splits.note


def test_official_parts_are_taken_where_they_are(folder, tmp_path):
    (tmp_path / "boolq").mkdir()
    development = (folder / "boolq/boolq_dev.jsonl").read_text().splitlines()
    (tmp_path / "boolq/boolq_dev.jsonl").write_text("\n".join(development[:10]))
    cut = load_splits("boolq", tmp_path)
    assert (len(cut.train), len(cut.test)) == (7, 3)
    (tmp_path / "boolq/boolq_train.jsonl").write_text("\n".join(development[10:30]))
    official = load_splits("boolq", tmp_path)
    assert (len(official.train), len(official.test), official.note) == (20, 10, "")
    assert cut.fingerprint() != official.fingerprint()


def test_prompts_read_as_questions(folder):
    first = load_task("svamp", folder, "train")[0]
    assert first.prompt == (
        "Q: Each pack of dvds costs 76 dollars. If there is a discount of 25 dollars on each pack. "
        "How much do you have to pay to buy each pack?\nA: The answer (arabic numerals) is"
    )
    assert first.answer == "51"
    first = load_task("commonsenseqa", folder, "train")[0]
    assert "Answer Choices: (A) ignore (B) enforce" in first.prompt
    assert first.prompt.endswith("A: Among A through E, the answer is")


def test_the_right_choice_is_not_always_the_first(folder):
    answers = [e.answer for e in load_task("date", folder, "train")]
    counts = {letter: answers.count(letter) for letter in set(answers)}
    assert len(counts) >= 4
    assert max(counts.values()) < 0.5 * len(answers)
    assert [e.answer for e in load_task("date", folder, "train")] == answers


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ("letter", " (B) enforce", "B"),
        ("letter", " C.", "C"),
        ("letter", " Apple", None),
        ("letter", " I think (B)", "B"),
        ("letter", " I don't know", None),
        ("number", " .5", "0.5"),
        ("number", " " + "9" * 400, "inf"),
        ("letter", "", None),
        ("number", " $1,234.50 dollars", "1234.5"),
        ("number", " -3", "-3"),
        ("number", " 51.0", "51"),
        ("number", " none", None),
        ("yes/no", " Yes, it is", "yes"),
        ("yes/no", " nothing", None),
        ("yes/no", " True", "yes"),
        ("true/false", " False", "false"),
        ("true/false", " no", "false"),
        ("true/false", " nowhere", None),
    ],
)
def test_the_first_answer_of_its_kind_is_read(kind, text, answer):
    assert read_answer(kind, text) == answer


@given(st.sampled_from(["letter", "number", "yes/no", "true/false"]), st.text(max_size=60))
def test_any_text_is_read_or_not(kind, text):
    found = read_answer(kind, text)
    assert found is None or isinstance(found, str)
    if kind == "letter" and found is not None:
        assert found in LETTERS


def test_a_missing_or_damaged_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no task"):
        load_task("chess", tmp_path)
    with pytest.raises(InputError, match="--task-data"):
        load_task("svamp", tmp_path)
    (tmp_path / "SVAMP").mkdir()
    for content, message in (
        ("{", "damaged"),
        (json.dumps({"examples": 3}), "no list"),
        (json.dumps([{"Body": "x"}]), "does not hold the entries"),
    ):
        (tmp_path / "SVAMP" / "SVAMP.json").write_text(content)
        with pytest.raises(InputError, match=message):
            load_task("svamp", tmp_path)
