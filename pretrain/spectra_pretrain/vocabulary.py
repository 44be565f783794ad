"""The size of a new model's vocabulary: a number, the model's own, or fitted to text and blocks."""

from typing import Any

import torch
from accelerate import init_empty_weights

from spectra_data.tokenizer import TRAIN, FittedVocabulary
from spectra_pretrain.options import AUTO, OWN, PretrainOptions
from spectra_pretrain.presets import default_vocabulary, model_config, model_of


def trained_vocabulary(options: PretrainOptions) -> int | FittedVocabulary:
    """Size of a tokenizer that is trained, or the rule that derives it from the text.

    Raises
    ------
    InputError
        When no causal language model has that configuration.
    """
    size = options.corpus.vocab_size
    if isinstance(size, int):
        return size
    own = default_vocabulary(options.model)
    if size == OWN:
        return own
    return FittedVocabulary(own, _balanced(options.model), options.corpus.max_tokens)


def vocabulary_line(options: PretrainOptions, size: int) -> str:
    """The vocabulary in words.

    Parameters
    ----------
    options
        Options in which ``auto`` is not yet replaced.
    size
        Number of tokens of the tokenizer.
    """
    own, wanted = default_vocabulary(options.model), options.corpus.vocab_size
    wanted = own if wanted == OWN else wanted
    if isinstance(wanted, int) and size < wanted:
        return f"vocabulary {size:,}: the text has too few words for {wanted:,}"
    if size == own:
        return f"vocabulary {size:,}"
    if wanted == AUTO and options.corpus.tokenizer == TRAIN:
        return (
            f"vocabulary {size:,}, fitted to the text and the blocks, instead of {own:,} "
            f"(--vocab-size {OWN} keeps those)"
        )
    return f"vocabulary {size:,} of the tokenizer instead of {own:,}"


def _balanced(spec: str) -> int:
    """Number of tokens with which a model's embedding and head weigh as much as its blocks."""
    with init_empty_weights():
        model = model_of(spec, model_config(spec))
    ends: tuple[Any, ...] = (model.get_input_embeddings(), model.get_output_embeddings())
    weights: dict[int, torch.Tensor] = {id(e.weight): e.weight for e in ends if e is not None}
    width = sum(weight.shape[1] for weight in weights.values())
    return sum(p.numel() for p in model.parameters() if id(p) not in weights) // width
