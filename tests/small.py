"""A model and a training loop small enough for any test."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def small_llama(seed: int = 0, **changes) -> LlamaForCausalLM:
    """A LLaMA of two layers with grouped queries: four shapes of matrices."""
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**sizes | changes))


def random_batch(seed: int, windows: int = 4, length: int = 16) -> torch.Tensor:
    """Token ids for `small_llama`: (windows, length)."""
    return torch.from_numpy(np.random.default_rng(seed).integers(64, size=(windows, length)))


def train(model, optimizer, steps, first=0, recorder=None):
    """A plain loop on random batches that depend on the step alone."""
    for step in range(first, first + steps):
        batch = random_batch(100 + step)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        if recorder is not None:
            recorder.log(loss=loss.item(), tokens=(step + 1) * batch.numel())
        optimizer.step()
        optimizer.zero_grad()
