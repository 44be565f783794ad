"""Tokens that a model is run on: they must be in its vocabulary."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from spectra_data.errors import InputError, first_line, is_out_of_memory


def require_known(largest: int, rows: int) -> None:
    """Require that a tokenizer makes no token that the model lacks.

    Parameters
    ----------
    largest
        Largest token id that the tokenizer made.
    rows
        Rows of the model's embedding.

    Raises
    ------
    InputError
        When the token is beyond the embedding.
    """
    if largest >= rows:
        raise InputError(
            f"the tokenizer makes token {largest}, but the model has {rows}: name the model's own "
            "with --tokenizer, or resize the model's embedding"
        )


@contextlib.contextmanager
def running(model: torch.nn.Module, tokens: torch.Tensor) -> Iterator[None]:
    """Run a model on tokens, (windows, length); turn an error of its code into one line.

    Models may be of any library, so any error may be raised.

    Raises
    ------
    InputError
        When a token is beyond the embedding, or the model cannot be run on the tokens.
    """
    untyped: Any = model
    embedding = getattr(untyped, "get_input_embeddings", lambda: None)()
    rows = getattr(getattr(embedding, "weight", None), "shape", (1 << 62,))[0]
    require_known(int(tokens.max()), rows)
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"{type(model).__name__} does not run on windows of {tokens.shape[-1]} tokens: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
