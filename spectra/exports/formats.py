"""One function per format, from a rank map to text or bytes."""

import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spectra.allocation.rankmap import RankMap
from spectra.allocation.table import to_table
from spectra.matrices import Skipped
from spectra.store.destination import write_result
from spectra_data.cells import inert
from spectra_data.errors import InputError

VLLM_LARGEST_RANK = 512
_EXPERT = re.compile(r"\.experts\.\d+\.")


def export(rank_map: RankMap, kind: str, path: str | Path) -> None:
    """Write a rank map in one of `FORMATS`.

    Raises
    ------
    InputError
        When there is no such format, the map has nothing for it, or the file cannot be written.
    """
    if kind not in FORMATS:
        raise InputError(f"no format {kind!r}; there are: {', '.join(FORMATS)}")
    made = FORMATS[kind].make(rank_map)
    content = made if isinstance(made, bytes) else made.encode()
    write_result(path, content)


def to_csv(rank_map: RankMap) -> str:
    """A header, and a row per matrix; see `spectra_data.cells` for texts like formulas."""
    return str(_frame(rank_map).map(inert).to_csv(index=False, lineterminator="\n"))


def to_parquet(rank_map: RankMap) -> bytes:
    """A row per matrix; the map's other fields are in the file's metadata, as JSON."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pandas(_frame(rank_map), preserve_index=False)
    rest = {name: value for name, value in rank_map.to_dict().items() if name != "modules"}
    table = table.replace_schema_metadata(
        {**(table.schema.metadata or {}), b"spectra": json.dumps(rest).encode()}
    )
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


def to_peft(rank_map: RankMap) -> str:
    """A PEFT ``adapter_config.json``: LoRA on the LRCs, each with its own rank.

    Keys of ``rank_pattern`` and ``alpha_pattern`` are regular expressions there, so full names are
    escaped; alpha is the rank, which scales the adapter by 1. Ranks are cut at 512, the most that
    vLLM serves. A layer that fuses several LRCs gets the largest of their ranks.
    """
    layers, _ = _adapted(rank_map)
    if not layers:
        raise InputError("the map has no LRC for adapters to go on: allocate with a higher ERR")
    ranks = {re.escape(name): min(rank, VLLM_LARGEST_RANK) for name, rank in layers.items()}
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": rank_map.model.name or None,
        "revision": rank_map.model.revision,
        "target_modules": list(layers),
        "r": common,
        "lora_alpha": common,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": False,
    }
    return _json(config)


def left_out(rank_map: RankMap, kind: str) -> list[Skipped]:
    """LRCs that a format cannot express, with the reason."""
    return _adapted(rank_map)[1] if kind == "peft" else []


def _adapted(rank_map: RankMap) -> tuple[dict[str, int], list[Skipped]]:
    """Ranks by layer of the model, and the LRCs that no layer stands for."""
    ranks = {module.name: module.rank for module in rank_map.lrc}
    found: dict[str, int] = {}
    skipped = []
    parts = {name: layer for layer, names in rank_map.fused.items() for name in names}
    for name, rank in ranks.items():
        layer = parts.get(name, name)
        if any(part not in ranks for part in rank_map.fused.get(layer, ())):
            skipped.append(Skipped(name, f"fused with N-LRCs in {layer}"))
        elif _EXPERT.search(name):
            skipped.append(Skipped(name, "one of a stack of experts, which is not a layer"))
        else:
            found[layer] = max(rank, found.get(layer, 0))
    return found, skipped


def to_llm_compressor(rank_map: RankMap) -> str:
    """The ``ignore`` list of a recipe (YAML) that leaves LRCs and the head alone.

    Only what stayed whole is then pruned or quantised.
    """
    low = {module.name for module in rank_map.lrc}
    fused = [layer for layer, names in rank_map.fused.items() if low & set(names)]
    parts = {name for names in rank_map.fused.values() for name in names}
    ignored = ["lm_head", *fused, *(m.name for m in rank_map.lrc if m.name not in parts)]
    return "ignore:\n" + "".join(f"  - {json.dumps(name)}\n" for name in ignored)


def to_asvd(rank_map: RankMap) -> str:
    """``truncation_ranks`` of an ASVD model's ``config.json``: the factored matrices."""
    return _json({"truncation_ranks": {m.name: m.rank for m in rank_map.modules if m.factored}})


def to_ranks(rank_map: RankMap) -> str:
    """``{name: rank}``, of every matrix."""
    return _json(rank_map.ranks)


def to_ratios(rank_map: RankMap) -> str:
    """``{name: fraction of parameters kept}``, of every matrix; 1 if it is whole."""
    return _json({m.name: m.params / m.params_dense for m in rank_map.modules})


class Format:
    """A format: function that makes it, summary, and suffix of its files."""

    def __init__(self, make: Callable[[RankMap], str | bytes], summary: str, suffix: str) -> None:
        self.make = make
        self.summary = summary
        self.suffix = suffix


FORMATS: Mapping[str, Format] = {
    "json": Format(RankMap.to_json, "the map itself", ".json"),
    "csv": Format(to_csv, "a row per matrix", ".csv"),
    "parquet": Format(to_parquet, "a row per matrix", ".parquet"),
    "peft": Format(to_peft, "LoRA adapter_config.json, the LRCs with their ranks", ".json"),
    "llm-compressor": Format(to_llm_compressor, "a recipe's ignore list: the LRCs", ".yaml"),
    "asvd": Format(to_asvd, "truncation_ranks, as in ASVD's config.json", ".json"),
    "ranks": Format(to_ranks, "{name: rank}", ".json"),
    "ratios": Format(to_ratios, "{name: fraction of parameters kept}", ".json"),
    "table": Format(to_table, "a table to read: layers by roles", ".txt"),
}


def _frame(rank_map: RankMap) -> Any:
    import pandas

    marked = {"approximate": True} if rank_map.approximate else {}
    return pandas.DataFrame([asdict(module) | marked for module in rank_map.modules])


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
