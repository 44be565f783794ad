"""A checkpoint's model without weights."""

import copy
from typing import Any

import torch

from spectra.models.messages import loading
from spectra.models.source import Source


def empty_model(source: Source) -> Any:
    """A checkpoint's model without weights, on torch's meta device; its buffers are real.

    Raises
    ------
    InputError
        When transformers does not know the model.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(source.config)
    auto: Any = AutoModelForCausalLM
    with loading(source.address), init_empty_weights(include_buffers=False):
        return auto.from_config(config, dtype=torch.float32)
