"""A model and a training loop small enough for any test."""

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def small_llama(seed: int = 0, **changes) -> LlamaForCausalLM:
    """A LLaMA of two layers with grouped queries: four shapes of matrices."""
    torch.manual_seed(seed)
    untied = {"vocab_size": 64, "tie_word_embeddings": False}
    return LlamaForCausalLM(LlamaConfig(**_LLAMA | untied | changes))


_QWEN_MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "head_dim": 8,
    "decoder_sparse_step": 1,
}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_UNGROUPED = {k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"}
SIZES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA | {"head_dim": 8},
    "gpt_neox": _UNGROUPED,
    "gpt2": _GPT,
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 32,
    },
    "mixtral": _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": _LLAMA | _QWEN_MOE,
    "phi3": _LLAMA,
    "gpt_oss": _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
}
"""Sizes of a small model by its family."""
MORE_SIZES = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "deepseek_v3": _LLAMA
    | {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
    },
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "glm": _LLAMA | {"head_dim": 8},
    "gpt_bigcode": _GPT,
    "granitemoe": _LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "llama4_text": _LLAMA
    | {
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "head_dim": 8,
        "intermediate_size_mlp": 48,
    },
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "olmoe": _LLAMA | _QWEN_MOE,
    "persimmon": _UNGROUPED,
    "qwen2_moe": _LLAMA | _QWEN_MOE | {"shared_expert_intermediate_size": 48},
}
"""Those of more families, whose layers hold several matrices."""


def small_model(family: str, seed: int = 0, **changes):
    """A causal language model of two blocks, of any family."""
    tokens = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = AutoConfig.for_model(family, **(tokens | (SIZES | MORE_SIZES)[family] | changes))
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


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
