"""Calibration text: a few full windows of tokens from a corpus."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from spectra_data.documents import DocumentSource, Skips, first_tokens, texts_of
from spectra_data.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def calibration_windows(
    source: DocumentSource,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    windows: int = 16,
    length: int = 512,
) -> npt.NDArray[np.int64]:
    """The first windows of a corpus, its documents concatenated: (windows, length).

    Raises
    ------
    InputError
        When the corpus is shorter than one window.
    """
    wanted, found = windows * length, 0
    documents: list[npt.NDArray[np.int64]] = []
    for texts in texts_of(source.pieces(Skips())):
        tokens = np.asarray(first_tokens(texts, tokenizer.encode, wanted - found), np.int64)
        documents.append(tokens)
        found += len(tokens)
        if found >= wanted:
            break
    count = min(windows, found // length)
    if count == 0:
        raise InputError(
            f"{source.name} has {found} tokens, fewer than one window of {length}: use more text"
        )
    return np.concatenate(documents)[: count * length].reshape(count, length)
