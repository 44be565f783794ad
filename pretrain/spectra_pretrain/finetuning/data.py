"""The data of a finetuning run: text, or a task's questions with their answers."""

from pathlib import Path

import numpy as np
from rich.console import Console

from spectra_data.errors import InputError
from spectra_data.tasks import load_splits
from spectra_pretrain.batches import (
    WindowBatches,
    WindowValidation,
    of_windows,
)
from spectra_pretrain.corpus import Text, open_corpus, recorded_tokens
from spectra_pretrain.finetuning.answers import (
    AnswerBatches,
    AnswerValidation,
    answered,
    held_out,
    padded,
)
from spectra_pretrain.finetuning.base_model import BaseModel
from spectra_pretrain.finetuning.options import FinetuneOptions
from spectra_pretrain.plan import random_windows
from spectra_pretrain.preparation import Data


def read_data(
    options: FinetuneOptions, base: BaseModel, out: Path, latest: Path | None, console: Console
) -> Data:
    """The data that the options name, in batches.

    Parameters
    ----------
    options, base
        The options of the run, and the checkpoint with its tokenizer.
    out, latest
        The run's folder, and the checkpoint to resume from.
    console
        Console that shows progress.

    Raises
    ------
    InputError
        When it cannot be read, is too short, or is no longer what the run started with.
    """
    if options.task.task is not None:
        data = read_task(options, base, options.task.task)
        if latest and recorded_tokens(out).key != data.manifest["key"]:
            raise InputError(f"the task's files are no longer those that {out} was trained on")
        return data
    text = options.text
    corpus = open_corpus(
        Text(
            text.data,
            text.text_field,
            text.validation_fraction,
            text.max_tokens,
            options.tokens,
            options.batch.seq_len,
        ),
        lambda source: base.tokenizer,
        out,
        console,
        recorded=recorded_tokens(out) if latest else None,
        of_run=lambda: base.tokenizer,
    )
    validation = corpus.validation
    probe = validation.read(np.arange(min(options.recorder.probe_size, len(validation))))
    return Data(
        WindowBatches(corpus.train, options.seed, options.batch.batch_size),
        WindowValidation(validation, options.evaluation.eval_tokens, options.micro_batch_size),
        of_windows(probe),
        corpus.line(options.tokens),
        corpus.manifest,
    )


def random_data(options: FinetuneOptions, vocab_size: int) -> Data:
    """Random tokens, to measure the speed on."""
    windows = random_windows(options, vocab_size)
    return Data(
        WindowBatches(windows, options.seed, options.batch.batch_size),
        WindowValidation(windows, options.batch.seq_len, 1),
        of_windows(windows.read(np.arange(min(options.recorder.probe_size, len(windows))))),
        "random tokens",
        {},
    )


def read_task(options: FinetuneOptions, base: BaseModel, task: str) -> Data:
    """A task's questions, in batches.

    Raises
    ------
    InputError
        When its files cannot be read.
    """
    splits = load_splits(task, options.task.task_data)
    test_questions = splits.test[: options.task.questions]
    train, apart = held_out(splits.train, options.text.validation_fraction, options.seed)
    manifest = {
        "task": task,
        "training_questions": len(train),
        "validation_questions": len(apart),
        "test_questions": len(test_questions),
        "key": splits.fingerprint()[:16],
        **({"note": splits.note} if splits.note else {}),
    }
    length = options.batch.seq_len
    learnt, kept = (answered(part, base.tokenizer, length) for part in (train, apart))
    tokens = options.evaluation.eval_tokens
    validation = AnswerValidation.of(kept, tokens, options.micro_batch_size)
    epochs = options.steps * options.batch.batch_size / len(learnt)
    return Data(
        AnswerBatches(learnt, options.seed, options.batch.batch_size),
        validation,
        padded(kept[: options.recorder.probe_size]),
        f"task {task}: {len(train):,} questions to train on (the run makes {epochs:.2f} epochs), "
        f"{len(validation.examples):,} of {len(apart):,} held out for validation, "
        f"{len(test_questions):,} to test on{'; ' if splits.note else ''}{splits.note}",
        manifest,
        test_questions,
    )
