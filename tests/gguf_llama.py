"""A small LLaMA as llama.cpp's converter writes it, in one GGUF file or several."""

from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import LlamaForCausalLM

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def write_gguf(folder: Path, model: LlamaForCausalLM, parts: int = 1) -> list[Path]:
    """Write a model's weights in float32; return the files."""
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    stored: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        path = name.removesuffix(".weight")
        if path in OUTSIDE:
            if path != "lm_head" or not config.tie_word_embeddings:
                stored[f"{OUTSIDE[path]}.weight"] = value
            continue
        layer, inner = path.removeprefix("model.layers.").split(".", 1)
        short = NAMES[inner]
        if short in heads:  # the two halves of a head's rows, in turn
            halves = value.reshape(heads[short], 2, -1, value.shape[1])
            value = halves.swapaxes(1, 2).reshape(value.shape)
        stored[f"blk.{layer}.{short}.weight"] = value
    names = list(stored)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for part in range(parts):
        files.append(folder / f"m-{part + 1:05d}-of-{parts:05d}.gguf")
        writer = gguf.GGUFWriter(files[-1], "llama")
        if part == 0:
            _describe(writer, config)
        if parts > 1:
            writer.add_uint16("split.no", part)
            writer.add_uint16("split.count", parts)
        for name in names[part * len(names) // parts : (part + 1) * len(names) // parts]:
            writer.add_tensor(name, np.ascontiguousarray(stored[name].float().numpy()))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return files


def _describe(writer: gguf.GGUFWriter, config: object) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_bos_token_id(0)
