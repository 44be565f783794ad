"""Reproduce a result of the paper on a checkpoint of any size: table, CSV and figure.

table1: perplexity by ERR for uniform, OWL and WeLore. table2: SVDs that know activations, with
uniform and WeLore's ranks. table3: memory for inference by ERR and context. figure7: pruning what
stayed dense. quality: the public ways to make a model of a size and ours, at equal parameters.
figure1: finetuning LRCs alone against everything. figure5: LRCs against N-LRCs. table4: LoRA,
GaLore and WeLore by ERR. table5: six tasks, dense and compressed. figure8: one task by LRCs, all
weights, LoRA. These say where what was measured is unlike the paper.
What is measured is kept, in --out or in --lab, so the same command goes on after a kill.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from spectra.commands.options import parse
from spectra.experiments.relevance import require_used
from spectra.experiments.run import EXPERIMENTS, Outcome, run_experiment
from spectra.experiments.settings import Settings
from spectra.experiments.tuning import Tuning
from spectra.machine.devices import device_of
from spectra.machine.progress import Shown


@dataclass(frozen=True)
class Options:
    """Options of `spectra experiment`."""

    name: tyro.conf.Positional[
        Literal[
            "table1", "table2", "table3", "figure7", "quality",
            "figure1", "figure5", "table4", "table5", "figure8",
        ]
    ]  # fmt: skip
    """Which result."""
    checkpoint: tyro.conf.Positional[str] = "HuggingFaceTB/SmolLM2-135M"
    """A Hugging Face folder, a .gguf file, or a hub name; by default one that two cores can do."""
    out: Path | None = None
    """Where results are kept; runs/experiments/NAME by default."""
    lab: Path | None = None
    """Where checkpoints are compressed and finetuned, made once for all experiments that name it;
    in --out by default."""
    settings: Settings = field(default_factory=Settings)
    tuning: Tuning = field(default_factory=Tuning)
    device: str | None = None
    """cpu or cuda; cuda where there is one, by default."""
    json: bool = False
    """Print one JSON object on stdout instead of text."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Options, arguments, command="experiment", description=__doc__)
    require_used(options.name, options.settings, options.tuning)
    out = options.out or Path("runs", "experiments", options.name)
    with Shown(Console(stderr=True)) as shown:
        common: dict[str, Any] = {
            "device": str(device_of(options.device)),
            "progress": shown.update,
        }
        if options.name in EXPERIMENTS:
            outcome = run_experiment(
                options.name, options.checkpoint, options.settings, out, **common
            )
        else:
            training = import_module("spectra_pretrain.experiments.run")
            outcome = training.run_tuning(
                options.name,
                options.checkpoint,
                options.settings,
                options.tuning,
                out,
                lab=options.lab,
                **common,
            )
    if options.json:
        found = {"title": outcome.title, "rows": outcome.rows, "claims": outcome.claims}
        print(json.dumps(found | {"failed": outcome.failed}))
    else:
        _print(outcome)
    for line in outcome.failed:
        print(f"spectra experiment: {line}", file=sys.stderr)
    return 1 if outcome.failed else 0


def _print(outcome: Outcome) -> None:
    table = Table(title=outcome.title, title_justify="left")
    for column in outcome.columns:
        words = column in ("recipe", "train", "task")
        table.add_column(column.replace("_", " "), justify="left" if words else "right")
    for row in outcome.table:
        table.add_row(*(_shown(column, row.get(column)) for column in outcome.columns))
    Console(width=120).print(table)
    for claim in outcome.claims:
        print(claim)
    for path in outcome.files:
        print(f"wrote {path}")


def _shown(column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value.replace(" ± ", "±")  # which a narrow column would part
    if column.startswith("peak") or column.endswith("_bytes"):
        return f"{value / 1e6:,.0f} MB" if value > 1e7 else f"{value / 1e3:,.0f} kB"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
