"""Accuracy on a downstream task: answers are generated and read; unreadable ones are wrong."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from scipy.stats import binomtest

from spectra.models.inputs import running
from spectra_data.errors import InputError
from spectra_data.tasks import TASKS, Example, read_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEW_TOKENS = 8


@dataclass(frozen=True)
class Accuracy:
    """Number of right answers, among all."""

    correct: int
    total: int
    unparsed: int
    """Number of answers that could not be read, which count as wrong."""
    cut: int = 0
    """Number of prompts longer than the model's window, of which only the end was kept."""

    @property
    def accuracy(self) -> float:
        """Right answers over all answers."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy, by Wilson's score."""
        found = binomtest(self.correct, self.total).proportion_ci(0.95, method="wilson")
        return float(found.low), float(found.high)


def task_accuracy(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    name: str,
    examples: Sequence[Example],
    *,
    batch_size: int = 8,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> Accuracy:
    """Ask a model every question, and count the right answers.

    Parameters
    ----------
    model, tokenizer
        Causal language model of transformers, and its tokenizer.
    name
        Name of the task, which decides how answers are read.
    examples
        Questions and answers.
    batch_size
        Number of questions at a time.
    progress
        Called with the number of questions done, and their total.

    Raises
    ------
    InputError
        When there is no question.
    """
    if not examples:
        raise InputError("there is no question to ask: set --windows to at least 1")
    kind = TASKS[name].kind
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = (longest or 1 << 20) - NEW_TOKENS
    correct = unparsed = cut = done = 0
    # similar lengths together, so that there is little padding
    ordered = sorted(examples, key=lambda e: (len(e.prompt), e.prompt))
    for first in range(0, len(ordered), batch_size):
        batch = ordered[first : first + batch_size]
        tokens = [tokenizer(e.prompt)["input_ids"] for e in batch]
        cut += sum(len(one) > room for one in tokens)
        texts = _continued(model, tokenizer, [one[-room:] for one in tokens])
        for example, text in zip(batch, texts, strict=True):
            said = read_answer(kind, text, example.choices or 5)
            unparsed += said is None
            correct += said == example.answer
        done += len(batch)
        progress(done, len(ordered))
    return Accuracy(correct, len(ordered), unparsed, cut)


@torch.no_grad()
def _continued(
    model: Any, tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Sequence[int]]
) -> list[str]:
    """Greedy continuations of prompts by a model."""
    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    pad = tokenizer.eos_token_id if pad is None else pad
    pad = 0 if pad is None else pad
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    with running(model, ids):
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=pad,
        )
    return [str(tokenizer.decode(row[longest:], skip_special_tokens=True)) for row in out]
