"""The default corpus: seconds to collect it, to train a tokenizer on it, and to tokenise it."""

import os
import tempfile
import time

from spectra_data.pydocs import PydocsSource
from spectra_data.tokenizer import resolve_tokenizer
from spectra_data.tokens import prepare_tokens


def run() -> list[dict[str, object]]:
    """Measure once, with an empty cache."""
    previous = os.environ.get("SPECTRA_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SPECTRA_CACHE"] = folder
        try:
            source = PydocsSource()
            started = time.perf_counter()
            manifest = source.manifest()
            collected = time.perf_counter()
            tokenizer = resolve_tokenizer("train", source, 32_000)
            trained = time.perf_counter()
            tokens = prepare_tokens(source, tokenizer).manifest
            tokenised = time.perf_counter()
        finally:
            os.environ.pop("SPECTRA_CACHE")
            if previous is not None:
                os.environ["SPECTRA_CACHE"] = previous
    count = tokens.train_tokens + tokens.validation_tokens
    return [
        {
            "corpus": "pydocs",
            "MB": manifest.bytes / 1e6,
            "documents": manifest.documents,
            "collect s": collected - started,
            "train BPE s": trained - collected,
            "tokenise s": tokenised - trained,
            "tokens": count,
            "tokens/s": count / (tokenised - trained),
        }
    ]
