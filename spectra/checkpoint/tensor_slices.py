"""Which tensors of a checkpoint are matrices, and which slice of a tensor a matrix is.

A tensor can hold several: fused projections (``qkv_proj``, ``gate_up_proj``, ``query_key_value``,
``c_attn``) and experts that are stacked along the first dimension.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from spectra.checkpoint.tensors import StoredTensor
from spectra.matrices import IN_PROJ, QKV_PARTS, ROLES, Matrix, Skipped, layer_of, role_of

Config = Mapping[str, Any]
Rows = tuple[tuple[int, int, int], ...]
"""Runs of rows: first, last (not included), step."""

ROUTERS = re.compile(r"\.(gate|router|shared_expert_gate|block_sparse_moe\.router\.layer)$")
PARAMETRIZED = re.compile(r"\.weight_(g|v|u|orig|mask)$")
SCALES = re.compile(r"_scale(_inv|_2)?$|\.(input|output|k|v)_scale$")
TRANSPOSING = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Families whose layers hold their weights as (inputs, outputs)."""
TRANSPOSED_EXPERTS = ("gpt_oss", "llama4", "llama4_text")
TURNS = ("gpt_oss",)
"""Families whose stacked gate and up alternate row by row instead of following each other."""
TOGETHER = {
    ("query_key_value", family)
    for family in ("gpt_neox", "gpt_neox_japanese", "bloom", "falcon", "persimmon")
} | {("wqkv", "internlm2")}
"""Layers that keep the queries, k and v of a group together."""
IN_TURN = {
    ("c_attn", "gpt2"), ("c_attn", "imagegpt"), ("c_attn", "decision_transformer"),
    ("c_attn", "qwen"), ("Wqkv", "mpt"), ("Wqkv", "dbrx"), ("W_pack", "baichuan"),
}  # fmt: skip
"""Layers that hold all of q, then all of k, then all of v."""
MULTI_QUERY = {("c_attn", "gpt_bigcode"): "multi_query",
               ("query_key_value", "chatglm"): "multi_query_attention"}  # fmt: skip
"""Layers that hold q, k and v so if this key is set in the configuration; else heads together."""
OTHERWISE = ("codegen", "openelm", "minimax")
"""Families whose ``qkv_proj`` has other layouts; in all others it holds q, then k, then v."""
GRANITE_NAMES = {"input_linear": "gate_up_proj", "output_linear": "down_proj"}
GRANITE = ("granitemoe", "granitemoeshared", "granitemoehybrid")
EMBEDDINGS = re.compile(r"relative_attention_bias|embed|position")
UNKNOWN_SHAPE = "of unknown shape"
ATTENTION = {f"{part}_weight": part for part in QKV_PARTS} | {IN_PROJ: IN_PROJ}
"""Names that `torch.nn.MultiheadAttention` gives to its weights, and their layers' names."""
GATE_UP_PARTS = ("gate_proj", "up_proj")


@dataclass(frozen=True)
class TensorSlice:
    """Location of a matrix: a tensor, or some of its rows, transposed or not."""

    tensor: str
    entry: int | None = None
    """Index along the first dimension of a stack."""
    rows: Rows = ()
    """Runs of the outputs that belong to it; all of them if empty."""
    transposed: bool = False
    """Whether the tensor holds (inputs, outputs)."""
    scale: str | None = None
    """Name of the tensor of a float8 weight's scales."""

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The matrix in the tensor, or in its entry: (rows, cols)."""
        whole = tensor.mT if self.transposed else tensor
        if not self.rows:
            return whole
        runs = [whole[first:last:step] for first, last, step in self.rows]
        return runs[0] if len(runs) == 1 else torch.cat(runs)

    def put(self, tensor: torch.Tensor, matrix: torch.Tensor) -> None:
        """Write the matrix, (rows, cols), into the tensor, or into its entry."""
        whole = tensor.mT if self.transposed else tensor
        at = 0
        for first, last, step in self.rows or ((0, len(whole), 1),):
            count = len(range(first, last, step))
            whole[first:last:step] = matrix[at : at + count]
            at += count


def find_slices(
    tensors: Mapping[str, StoredTensor],
    config: Config,
    *,
    upright: bool = False,
    paths: Mapping[str, str] = {},
) -> tuple[dict[Matrix, TensorSlice], list[Skipped]]:
    """Find the matrices among a checkpoint's tensors, in the order of layers.

    Parameters
    ----------
    tensors
        Tensors by name.
    config
        The model's configuration, the content of ``config.json``; {} if there is none.
    upright
        Whether all tensors are (outputs, inputs), regardless of the family's convention.
    paths
        The model's names of matrices whose tensors have other names, by the tensors' paths.

    Returns
    -------
    Matrices with their slices, and every other tensor with the reason why it is left out.
    """
    inner = config.get("text_config")
    config = inner if isinstance(inner, Mapping) else config
    found: dict[Matrix, TensorSlice] = {}
    skipped = []
    for name, tensor in tensors.items():
        reason = _left_out(tensor)
        if reason is not None:
            skipped.append(Skipped(name, reason))
            continue
        path = name.removesuffix(".weight")
        layer = layer_of(path)
        assert layer is not None
        scale = next((s for s in (f"{name}_scale_inv", f"{name}_scale") if s in tensors), None)
        for stored_path, rows, cols, where in _slices(path, tensor, config, scale, upright):
            matrix_path = paths.get(stored_path, stored_path)
            found[Matrix(matrix_path, layer, role_of(matrix_path), rows, cols)] = where
    return {matrix: found[matrix] for matrix in sorted(found, key=_place)}, skipped


def _place(matrix: Matrix) -> tuple[Any, ...]:
    """Order of computation: by layer, attention first, experts by number, q k v o gate up down."""
    before, _, after = matrix.name.partition(f".{matrix.layer}.")
    folder, _, last = after.rpartition(".")
    numbers = tuple(int(n) for n in re.findall(r"\d+", folder))
    order = list(ROLES.values())
    role = order.index(matrix.role) if matrix.role in order else len(order)
    attention = "attn" in folder or "attention" in folder
    return before, matrix.layer, not attention, re.sub(r"\d+", "", folder), numbers, role, last


def _left_out(tensor: StoredTensor) -> str | None:
    """Why a tensor is not a matrix; None if it is one or holds some."""
    name, sides = tensor.name, len(tensor.shape)
    path = name.removesuffix(".weight")
    if SCALES.search(name):
        return "scales of a quantised weight"
    if layer_of(path) is None:
        return "outside the transformer blocks"
    if tensor.problem and not tensor.shape:
        return f"{UNKNOWN_SHAPE}: {tensor.problem}"
    stacked = sides == 3 and ("experts" in path or path.endswith("_linear"))
    plain = name.endswith(".weight") or name.rpartition(".")[2] in ATTENTION
    if ".parametrizations." in name or PARAMETRIZED.search(name):
        return "a part of a parametrized weight"
    if sides < 2 or not (plain or stacked):
        return "not the weight of a linear layer"
    if sides > 3 or (sides == 3 and not stacked):
        return f"{sides}-dimensional, and no stack of experts"
    if tensor.readable_as is None:
        return f"quantised ({tensor.format})"
    if ROUTERS.search(path):
        return "routes tokens to experts"
    if EMBEDDINGS.search(path.rpartition(".")[2]):
        return "an embedding"
    if 0 in tensor.shape:
        return "empty"
    return None


def _slices(
    path: str, tensor: StoredTensor, config: Config, scale: str | None, upright: bool
) -> Iterator[tuple[str, int, int, TensorSlice]]:
    """Path, rows, cols and slice of every matrix in a tensor."""
    folder, last = path.rsplit(".", 1)
    last = ATTENTION.get(last, last)
    stacked = len(tensor.shape) == 3
    if stacked and last in GRANITE_NAMES and config.get("model_type") in GRANITE:
        folder, last = f"{folder}.experts", GRANITE_NAMES[last]
    transposed = not upright and _is_transposed(tensor, last, config)
    outputs, inputs = tensor.shape[-2:]
    if transposed:
        outputs, inputs = inputs, outputs
    split = dict(_split(last, outputs, config)) or {last: ((0, outputs, 1),)}
    entries: list[int | None] = list(range(tensor.shape[0])) if len(tensor.shape) == 3 else [None]
    for entry in entries:
        home = folder if entry is None else f"{folder}.{entry}"
        for part, rows in split.items():
            count = sum(len(range(*run)) for run in rows)
            kept = () if count == outputs else rows
            yield (
                f"{home}.{part}",
                count,
                inputs,
                TensorSlice(tensor.name, entry, kept, transposed, scale),
            )


def _is_transposed(tensor: StoredTensor, last: str, config: Config) -> bool:
    family = config.get("model_type")
    if len(tensor.shape) == 2:
        return family in TRANSPOSING
    if family in TRANSPOSED_EXPERTS:
        return True
    # (experts, outputs, inputs) is the convention; the model's width shows exceptions
    width = config.get("hidden_size")
    one, other = tensor.shape[1:]
    outputs = {"down_proj": other, "gate_proj": one, "up_proj": one, "gate_up_proj": one}
    return one != other and last in outputs and outputs[last] == width


def _split(last: str, outputs: int, config: Config) -> Iterator[tuple[str, Rows]]:
    """The outputs of each matrix in a fused layer; nothing if it is not fused."""
    if last == "gate_up_proj" and outputs % 2 == 0:
        half = outputs // 2
        if config.get("model_type") in TURNS:
            yield from zip(GATE_UP_PARTS, (((0, outputs, 2),), ((1, outputs, 2),)), strict=True)
        else:
            yield from zip(GATE_UP_PARTS, (((0, half, 1),), ((half, outputs, 1),)), strict=True)
    elif last == IN_PROJ and outputs % 3 == 0:
        third = outputs // 3
        yield from zip(
            QKV_PARTS, (((n * third, (n + 1) * third, 1),) for n in range(3)), strict=True
        )
    elif (rows := _qkv_rows(last, outputs, config)) is not None:
        yield from zip(QKV_PARTS, rows, strict=True)


def _qkv_rows(last: str, outputs: int, config: Config) -> tuple[Rows, Rows, Rows] | None:
    """Rows of q, k and v; None if the layer does not fuse them, or its layout is unknown."""
    family = str(config.get("model_type"))
    together, in_turn = (last, family) in TOGETHER, (last, family) in IN_TURN
    if switch := MULTI_QUERY.get((last, family)):
        in_turn = bool(config.get(switch))
        together = not in_turn
    if last == "qkv_proj" and family not in OTHERWISE:
        in_turn = True
    heads = config.get("num_attention_heads") or config.get("n_head") or config.get("n_heads")
    if not (together or in_turn) or not isinstance(heads, int) or heads < 1:
        return None
    shared = _shared_heads(heads, config)
    size, rest = divmod(outputs, heads + 2 * shared)
    if rest or heads % shared:
        return None
    if together:
        return _grouped_rows(shared, heads // shared, size)
    ends = (heads * size, (heads + shared) * size, outputs)
    return ((0, ends[0], 1),), ((ends[0], ends[1], 1),), ((ends[1], ends[2], 1),)


def _shared_heads(heads: int, config: Config) -> int:
    """Number of heads of k and of v."""
    if config.get("model_type") == "falcon" and not config.get("new_decoder_architecture"):
        return 1 if config.get("multi_query", True) else heads
    if config.get("multi_query") and config.get("model_type") == "gpt_bigcode":
        return 1
    keys = ("num_key_value_heads", "num_kv_heads", "multi_query_group_num", "kv_n_heads")
    given = [config.get(key) or (config.get("attn_config") or {}).get(key) for key in keys]
    return next((count for count in given if isinstance(count, int) and count > 0), heads)


def _grouped_rows(groups: int, queries: int, size: int) -> tuple[Rows, Rows, Rows]:
    """Rows of q, k and v where each group holds its queries, then its k, then its v."""
    step = (queries + 2) * size
    starts = [group * step for group in range(groups)]
    q = tuple((start, start + queries * size, 1) for start in starts)
    k = tuple((start + queries * size, start + (queries + 1) * size, 1) for start in starts)
    v = tuple((start + (queries + 1) * size, start + step, 1) for start in starts)
    return q, k, v


def scaled(weight: torch.Tensor, scale: torch.Tensor, config: Config) -> torch.Tensor:
    """A float8 weight times its scales, in float32.

    Parameters
    ----------
    weight
        (rows, cols) of float8.
    scale
        One number; one a row, (rows,) or (rows, 1); or one a block: (rows / b, cols / c), with
        the block's sides from the configuration, 128 by default.
    config
        The model's configuration.
    """
    values, scale = weight.float(), scale.float()
    if scale.numel() == 1:
        return values * scale.reshape(())
    rows, cols = values.shape
    if scale.numel() == rows and (scale.ndim == 1 or scale.shape[-1] == 1):
        return values * scale.reshape(rows, 1)
    sides = (config.get("quantization_config") or {}).get("weight_block_size") or (128, 128)
    fitting = tuple(math.ceil(n / side) for n, side in zip((rows, cols), sides, strict=True))
    if fitting != tuple(scale.shape):
        raise ValueError(f"scales of {tuple(scale.shape)} for a weight of {rows} x {cols}")
    whole = scale.repeat_interleave(sides[0], 0)[:rows].repeat_interleave(sides[1], 1)[:, :cols]
    return values * whole
