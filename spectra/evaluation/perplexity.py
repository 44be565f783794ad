"""Perplexity, by the reference's protocol or on any text, with any window and stride.

No window is ever skipped: one whose loss is not finite raises an error that names it.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F

from spectra.models.inputs import running
from spectra_data.documents import DocumentSource, Skips, first_tokens, texts_of
from spectra_data.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Bos = Literal["tokenizer", "start", "windows", "none"]
REFERENCE_DOCUMENTS = 1100
REFERENCE_WINDOWS = 256


@dataclass(frozen=True)
class Text:
    """Tokens to evaluate on, and how they were made."""

    tokens: torch.Tensor
    """Token ids, (count,)."""
    bos: Bos
    bos_token: int | None = None
    """Beginning token before every window if `bos` is ``windows``; None otherwise."""

    def inner(self, seq_len: int) -> int:
        """Tokens of the text in a window."""
        return seq_len - (self.bos_token is not None)

    def starts(self, seq_len: int, stride: int | None = None, windows: int | None = None) -> range:
        """Where windows start; see `perplexity`.

        Raises
        ------
        InputError
            When the text fills no window.
        """
        own = self.inner(seq_len)
        step = own if stride is None else stride
        if windows is not None and windows < 1:
            raise InputError(f"at least one window is needed, not {windows}")
        if not 0 < step <= own or own < 2:
            raise InputError(f"a stride of {step} does not fit windows of {seq_len} tokens")
        starts = range(0, len(self.tokens) - own + 1, step)
        starts = starts[: len(starts) if windows is None else windows]
        if not starts:
            raise InputError(
                f"the text has {len(self.tokens)} tokens, too few for a window of {seq_len}: name "
                "more text, or a smaller --seq-len"
            )
        return starts


@dataclass(frozen=True)
class Perplexity:
    """A perplexity, and the windows that it was measured on."""

    nll: float
    """Mean cross-entropy in nats over the tokens that count."""
    windows: int
    tokens: int
    """Number of tokens that count."""
    seq_len: int
    stride: int
    bos: Bos
    losses: tuple[float, ...]
    """Mean cross-entropy of every window."""
    seconds: float = 0.0
    """Duration of the model's passes."""

    @property
    def perplexity(self) -> float:
        """exp(nll); infinite if that overflows."""
        return math.exp(self.nll) if self.nll < 700 else math.inf


def text_tokens(
    source: DocumentSource,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    bos: Bos = "tokenizer",
    documents: int | None = None,
    joint: str = "\n\n",
    limit: int | None = None,
) -> Text:
    """The documents of a corpus, joined and tokenised as one text.

    Parameters
    ----------
    source, tokenizer
        Corpus, and the model's tokenizer.
    bos
        Place of the beginning token. ``tokenizer``: where the tokenizer puts it (once at the start,
        or nowhere); ``start``: once, at the start; ``windows``: at the start of every window;
        ``none``: nowhere.
    documents
        Number of documents; all by default.
    joint
        Text between documents.
    limit
        Number of tokens needed, which bounds how much of a large corpus is read.

    Raises
    ------
    InputError
        When `bos` needs a beginning token and the tokenizer has none.
    """

    def encode(text: str) -> list[int]:
        encoded: Any = tokenizer(text, add_special_tokens=bos == "tokenizer", verbose=False)
        found: list[int] = encoded["input_ids"]
        return found

    texts = _joined(texts_of(source.pieces(Skips())), documents, joint)
    tokens = torch.tensor(first_tokens(texts, encode, limit), dtype=torch.long)
    if bos not in ("start", "windows"):
        return Text(tokens, bos)
    first = tokenizer.bos_token_id
    if not isinstance(first, int):
        raise InputError("the tokenizer has no beginning token: set --bos none")
    if bos == "start":
        tokens = torch.cat([torch.tensor([first]), tokens])
    return Text(tokens, bos, first if bos == "windows" else None)


def reference_tokens(
    source: DocumentSource, tokenizer: "PreTrainedTokenizerBase", limit: int | None = None
) -> Text:
    """The reference's text: the first 1100 documents, joined by spaces; see `text_tokens`."""
    return text_tokens(source, tokenizer, documents=REFERENCE_DOCUMENTS, joint=" ", limit=limit)


@torch.no_grad()
def perplexity(
    model: torch.nn.Module,
    text: Text,
    *,
    seq_len: int,
    windows: int | None = None,
    stride: int | None = None,
    batch_size: int = 4,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> Perplexity:
    """Perplexity over full windows; their inner tokens count, each once.

    Parameters
    ----------
    model
        Causal language model of transformers, in evaluation mode while this runs.
    text
        Text to evaluate on.
    seq_len
        Number of tokens in a window, beginning token included.
    windows
        Largest number of windows; all full ones by default.
    stride
        Number of tokens from one window to the next; a window's length by default. If it is less,
        tokens that an earlier window counted are only context.
    batch_size
        Number of windows at a time.
    progress
        Called with the number of windows done, and their total.

    Raises
    ------
    InputError
        When the text fills no window, or a window's loss is not finite.
    """
    own, starts = text.inner(seq_len), text.starts(seq_len, stride, windows)
    step = own if stride is None else stride
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    losses: list[float] = []
    started = time.perf_counter()
    total, counted = 0.0, 0
    for first in range(0, len(starts), batch_size):
        batch = starts[first : first + batch_size]
        tokens = torch.stack([text.tokens[start : start + own] for start in batch])
        if text.bos_token is not None:
            begin = torch.full((len(tokens), 1), text.bos_token)
            tokens = torch.cat([begin, tokens], dim=1)
        sums = _losses(model, tokens.to(device))  # (windows, seq_len - 1)
        for number, row in enumerate(sums, start=first):
            new = row if number == 0 or step == own else row[-step:]
            value = float(new.double().sum())
            if not math.isfinite(value):
                raise InputError(
                    f"the loss of window {number} (tokens {starts[number]} to "
                    f"{starts[number] + own}) is {value}: the model's weights or its precision "
                    "are at fault, and leaving the window out would hide it"
                )
            losses.append(value / len(new))
            total, counted = total + value, counted + len(new)
        progress(first + len(batch), len(starts))
    model.train(training)
    return Perplexity(
        total / counted,
        len(starts),
        counted,
        seq_len,
        step,
        text.bos,
        tuple(losses),
        time.perf_counter() - started,
    )


def _losses(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Cross-entropy at every inner token, in float32: (windows, length - 1)."""
    with running(model, tokens):
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    rows = [
        F.cross_entropy(one.float(), wanted, reduction="none")
        for one, wanted in zip(logits, tokens[:, 1:], strict=True)
    ]
    return torch.stack(rows)


def _joined(documents: Iterator[Iterator[str]], count: int | None, joint: str) -> Iterator[str]:
    for number, texts in enumerate(islice(documents, count)):
        if number:
            yield joint
        yield from texts
