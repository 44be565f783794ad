"""Forecasts of large models: what every command reads, needs and takes on this machine.

The checkpoints are sparse files of the right shapes; costs are timed on samples.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from spectra.calibration.options import Calibration
from spectra.compression.plan import Request
from spectra.compression.settings import Compression
from spectra.forecasting.compress import compress_forecast
from spectra.forecasting.evaluate import EvaluationForecaster
from spectra.forecasting.forecast import Forecast, duration
from spectra.forecasting.prune import prune_forecast
from spectra.forecasting.scan import scan_forecast
from spectra.models.source import Source
from spectra.pruning.sparsity import Pattern
from spectra.scanning.decomposition import DecompositionOptions
from tests.sparse import write_sparse

_SMALL = {"vocab_size": 32_000, "max_position_embeddings": 4096}
MODELS = {
    "LLaMA-7B": ("llama", _SMALL),
    "LLaMA-13B": (
        "llama",
        _SMALL
        | {
            "hidden_size": 5120,
            "intermediate_size": 13_824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
        },
    ),
    "Mixtral-8x7B": ("mixtral", _SMALL),
    "LLaMA-70B": (
        "llama",
        _SMALL
        | {
            "hidden_size": 8192,
            "intermediate_size": 28_672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
        },
    ),
    "LLaMA-405B": (
        "llama",
        {
            "vocab_size": 128_256,
            "max_position_embeddings": 4096,
            "hidden_size": 16_384,
            "intermediate_size": 53_248,
            "num_hidden_layers": 126,
            "num_attention_heads": 128,
            "num_key_value_heads": 8,
        },
    ),
}
WINDOWS, LENGTH = 64, 2048
"""Windows of an evaluation."""


def run() -> list[dict[str, object]]:
    """Forecast every command for every model."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (family, sizes) in MODELS.items():
            source = Source(str(write_sparse(Path(folder) / name, family, **sizes)))
            for command, forecast in forecasts(source):
                rows.append(_row(name, command, forecast))
    return rows


def forecasts(source: Source) -> Iterator[tuple[str, Forecast]]:
    """Forecasts of a checkpoint, by command."""
    opened = source.checkpoint
    yield "scan", scan_forecast([opened], DecompositionOptions(), None)
    yield "scan --approximate", scan_forecast([opened], DecompositionOptions(True), None)
    request = Request(source, None, Compression(budget=0.8), False, "cpu")
    yield "compress --budget 0.8", compress_forecast(request)
    given = source, list(opened.matrices), Pattern(0.5), "wanda", Calibration("pydocs")
    yield "prune --sparsity 0.5 --calibration pydocs", prune_forecast(*given)
    found = EvaluationForecaster(source, torch.float32, "auto")
    yield f"evaluate --windows {WINDOWS} --seq-len {LENGTH}", found.perplexity(WINDOWS, LENGTH)


def _row(name: str, command: str, forecast: Forecast) -> dict[str, object]:
    return {
        "model": name,
        "command": command,
        "reads, GB": forecast.reads / 1e9,
        "memory, GB": forecast.memory / 1e9,
        "scratch, GB": forecast.scratch / 1e9,
        "writes, GB": forecast.writes / 1e9,
        "time": duration(forecast.seconds),
    }
