"""Windows of tokens to calibrate on: from a corpus, or from text that the model itself writes."""

import hashlib
import time
from typing import TYPE_CHECKING, Any

import torch

from spectra.calibration.draws import drawn
from spectra.machine.progress import Progress, silent
from spectra.models.placement import placed_model
from spectra.models.source import Source
from spectra.models.streamed import is_streamed
from spectra_data.calibration import calibration_windows
from spectra_data.documents import DocumentSource
from spectra_data.errors import InputError
from spectra_data.tokenizer import load_tokenizer, tokenizer_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WRITTEN_TOGETHER = 16
"""Number of windows that a model in memory writes at a time."""
CACHE_BYTES = 4e9
"""Memory for the keys and values of a model that writes while its blocks are read one by one."""
PREDICTING = (8, 64)
"""Tokens after which the time that all take is predicted."""


def corpus_windows(
    source: DocumentSource, tokenizer: "PreTrainedTokenizerFast", *, windows: int, length: int
) -> torch.Tensor:
    """The first windows of a corpus: (windows, length).

    Raises
    ------
    InputError
        When the corpus has too few windows.
    """
    found = calibration_windows(source, tokenizer, windows=windows, length=length)
    if len(found) < windows:
        raise InputError(
            f"{source.name} has {len(found)} windows of {length} tokens, not {windows}: name more "
            "text, or fewer windows"
        )
    return torch.from_numpy(found)


def about_text(
    source: DocumentSource, tokenizer: "PreTrainedTokenizerFast", windows: torch.Tensor
) -> dict[str, Any]:
    """Identity of calibration text: its source, and the hashes of text, tokenizer and tokens."""
    return {
        "data": source.name,
        "fingerprint": source.fingerprint(),
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "tokens_sha256": tokens_sha256(windows),
        "windows": len(windows),
        "length": windows.shape[1],
    }


def tokens_sha256(windows: torch.Tensor) -> str:
    """Hash of token ids."""
    return hashlib.sha256(windows.long().contiguous().numpy().tobytes()).hexdigest()


def tokenizer_of(source: Source, named: str | None) -> "PreTrainedTokenizerFast":
    """The tokenizer of a given name, or the checkpoint's own."""
    return load_tokenizer(named) if named is not None else source.tokenizer


def own_windows(
    source: Source,
    *,
    windows: int,
    length: int,
    seed: int,
    device: str = "cpu",
    hours: float | None = None,
    progress: Progress = silent,
) -> torch.Tensor:
    """Text that the model itself writes: (windows, length) token ids.

    Each token is drawn from the model's predictions, starting with its beginning token (with a
    random token if it has none), so that statistics need no data. A window depends on the seed
    alone, not on those that are written with it. A model that memory does not hold
    is read block by block for every token, for as many windows together as their keys and values
    leave memory for.

    Parameters
    ----------
    source
        Checkpoint of the model.
    windows, length
        Number of windows, and of tokens in each.
    seed
        Seed of the tokens.
    device
        Device on which the model runs.
    hours
        Hours that it may take, predicted by its first tokens; None for any.
    progress
        Called with the stage, the number of tokens written to every window, and their total.

    Raises
    ------
    TooSlowError
        When it would take longer.
    InputError
        When the model cannot be loaded.
    """
    model: Any = placed_model(source, device=device)
    together = WRITTEN_TOGETHER
    if is_streamed(model):
        together = kept_together(model.config, windows, length)
    draw = torch.Generator().manual_seed(seed)
    uniform = torch.rand(windows, length, generator=draw, dtype=torch.float64)
    first = getattr(model.config, "bos_token_id", None)
    if isinstance(first, int):
        begin = torch.full((windows, 1), first)
    else:
        begin = (uniform[:, :1] * model.config.get_text_config().vocab_size).long()
    starts = range(0, windows, together)
    pace = _Pace(len(starts), length, hours, progress)
    batches = []
    for start in starts:
        some = slice(start, start + together)
        batches.append(_written(model, begin[some].to(device), uniform[some], pace))
    return torch.cat(batches)


class TooSlowError(Exception):
    """Writing text would take longer than allowed; says how long."""


class _Pace:
    """Progress of writing, whose time is known once the first tokens are there."""

    def __init__(self, batches: int, length: int, hours: float | None, progress: Progress) -> None:
        self._total = batches * (length - 1)
        self._hours, self._progress = hours, progress
        self._done = 0
        self._started = time.perf_counter()

    def step(self) -> None:
        """A token was written to every window of a batch."""
        self._done += 1
        if self._done in PREDICTING and self._hours is not None:
            # the first token loads what later ones use
            since = time.perf_counter() - self._started
            predicted = since / self._done * self._total / 3600
            if predicted > self._hours:
                raise TooSlowError(f"{predicted:.1f} hours")
        self._progress("own text", self._done, self._total)


@torch.no_grad()
def _written(model: Any, tokens: torch.Tensor, uniform: torch.Tensor, pace: _Pace) -> torch.Tensor:
    """Continue every row, one token for each of its numbers after the first.

    An end token does not stop a row, as in pretraining text.
    """
    cache = None
    last = tokens
    for at in uniform[:, 1:].T:
        kept: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        out = model(input_ids=last if kept else tokens, use_cache=True, logits_to_keep=1, **kept)
        cache = getattr(out, "past_key_values", None)  # missing in models that keep other states
        last = drawn(out.logits[:, -1].float().softmax(dim=-1), at)[:, None].to(tokens.device)
        tokens = torch.cat([tokens, last], dim=1)
        pace.step()
    return tokens.cpu()


def kept_together(config: Any, windows: int, length: int) -> int:
    """Number of windows whose keys and values memory holds together."""
    return max(1, min(windows, int(CACHE_BYTES // (length * _cached_bytes(config)))))


def _cached_bytes(config: Any) -> int:
    """Bytes of a token's keys and values in float32, over all layers."""
    text = config.get_text_config()
    queries = getattr(text, "num_attention_heads", None) or 1
    heads = getattr(text, "num_key_value_heads", None) or queries
    size = getattr(text, "head_dim", None) or text.hidden_size // queries
    return int(2 * 4 * text.num_hidden_layers * heads * size)
