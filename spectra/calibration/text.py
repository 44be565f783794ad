"""Windows of tokens to calibrate on: from a corpus, or from text that the model itself writes."""

import hashlib
from typing import TYPE_CHECKING, Any

import torch

from spectra.models.loading import load_whole
from spectra.models.source import Source
from spectra_data.calibration import calibration_windows
from spectra_data.documents import DocumentSource
from spectra_data.errors import InputError
from spectra_data.tokenizer import load_tokenizer, tokenizer_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WRITTEN_TOGETHER = 16
"""Number of windows that a model writes at a time."""


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
    source: Source, *, windows: int, length: int, seed: int, device: str = "cpu"
) -> torch.Tensor:
    """Text that the model itself writes: (windows, length) token ids.

    Each token is drawn from the model's predictions, starting with its beginning token (with a
    random token if it has none), so that statistics need no data.

    Raises
    ------
    InputError
        When the model cannot be loaded.
    """
    model: Any = load_whole(source).model.eval().to(device)
    config = model.config
    first = getattr(config, "bos_token_id", None)
    batches = []
    state = torch.get_rng_state()
    try:
        torch.manual_seed(seed)
        for start in range(0, windows, WRITTEN_TOGETHER):
            count = min(WRITTEN_TOGETHER, windows - start)
            if isinstance(first, int):
                begin = torch.full((count, 1), first)
            else:
                begin = torch.randint(config.get_text_config().vocab_size, (count, 1))
            batches.append(_written(model, begin.to(device), length).cpu())
    finally:
        torch.set_rng_state(state)
    return torch.cat(batches)


@torch.no_grad()
def _written(model: Any, tokens: torch.Tensor, length: int) -> torch.Tensor:
    """Continue every row to a length; an end token does not stop a row, as in pretraining text."""
    cache = None
    last = tokens
    while tokens.shape[1] < length:
        kept: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        out = model(input_ids=last if kept else tokens, use_cache=True, logits_to_keep=1, **kept)
        cache = getattr(out, "past_key_values", None)  # missing in models that keep other states
        probabilities = out.logits[:, -1].float().softmax(dim=-1)
        if not torch.isfinite(probabilities).all():
            raise InputError("the model's predictions are not finite: `spectra scan` finds why")
        last = torch.multinomial(probabilities, 1)
        tokens = torch.cat([tokens, last], dim=1)
    return tokens
