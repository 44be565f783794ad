"""Batches of a downstream task: questions with answers, of which only the answers are learnt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from spectra_data.errors import InputError
from spectra_data.tasks import Example
from spectra_pretrain.batches import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100


@dataclass(frozen=True)
class Answered:
    """A question and its answer as tokens."""

    tokens: tuple[int, ...]
    labels: int
    """Number of tokens, at the end, that belong to the answer."""


@dataclass(frozen=True)
class AnswerBatches:
    """Questions in an order drawn from the seed, a new one every epoch."""

    examples: Sequence[Answered]
    seed: int
    size: int

    def read(self, step: int) -> Batch:
        """See `Batches`."""
        numbers = np.arange(step * self.size, (step + 1) * self.size)
        epochs, positions = np.divmod(numbers, len(self.examples))
        orders = {
            int(e): np.random.default_rng([self.seed, int(e)]).permutation(len(self.examples))
            for e in np.unique(epochs)
        }
        return padded(
            [self.examples[orders[int(e)][p]] for e, p in zip(epochs, positions, strict=True)]
        )


@dataclass(frozen=True)
class AnswerValidation:
    """Questions that training never sees."""

    examples: Sequence[Answered]
    size: int
    """Questions per batch."""

    def batches(self) -> Iterator[Batch]:
        """See `Validation`."""
        for first in range(0, len(self.examples), self.size):
            yield padded(self.examples[first : first + self.size])

    @staticmethod
    def of(examples: Sequence[Answered], tokens: int, size: int) -> "AnswerValidation":
        """The first questions, with at most `tokens` tokens together; at least one."""
        ends = np.cumsum([len(example.tokens) for example in examples])
        return AnswerValidation(examples[: max(1, int(np.sum(ends <= tokens)))], size)


def answered(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerFast", length: int
) -> list[Answered]:
    """Questions with their answers, as tokens: the answer follows the prompt and a space.

    Parameters
    ----------
    examples
        Examples of a task.
    tokenizer
        Puts its own tokens at the beginning of a prompt; its end token ends an answer.
    length
        Largest number of tokens; a longer prompt keeps its end, as in evaluation.

    Raises
    ------
    InputError
        When an answer alone is longer.
    """
    end = tokenizer.eos_token_id
    found = []
    for example in examples:
        prompt = list(tokenizer(example.prompt)["input_ids"])
        answer = tokenizer(f" {written(example.answer)}", add_special_tokens=False)["input_ids"]
        answer = [*answer, *([] if end is None else [end])]
        room = length - len(answer)
        if room < 1:
            raise InputError(f"--seq-len {length} has no room for a question and its answer")
        found.append(Answered((*prompt[-room:], *answer), len(answer)))
    return found


def written(answer: str) -> str:
    """An answer as in a sentence: `True`, `No`, `B`, `12`."""
    return answer.capitalize() if answer.isalpha() else answer


def held_out(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], ...]:
    """Examples to train on, in their order, and examples to validate on, drawn from the seed.

    Raises
    ------
    InputError
        When there are fewer than two: each part needs at least one.
    """
    if len(examples) < 2:
        raise InputError("a task needs at least two training questions, one to validate on")
    order = np.random.default_rng(seed).permutation(len(examples))
    count = min(len(examples) - 1, max(1, round(share * len(examples))))
    apart = order[:count].tolist()
    drawn = set(apart)
    train = [e for i, e in enumerate(examples) if i not in drawn]
    return train, [examples[i] for i in apart]


def padded(examples: Sequence[Answered]) -> Batch:
    """One batch, padded on the right to its longest: (questions, tokens)."""
    longest = max(len(e.tokens) for e in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(examples):
        count = len(example.tokens)
        ids[row, :count] = torch.tensor(example.tokens)
        labels[row, count - example.labels : count] = ids[row, count - example.labels : count]
        mask[row, :count] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}
