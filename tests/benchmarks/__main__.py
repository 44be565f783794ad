"""`make bench`: every benchmark, as tables and as JSON in tests/benchmarks/results/."""

import importlib
import json
import platform
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from spectra.machine.bfloat16 import is_native
from spectra.machine.devices import device_of

BENCHMARKS = (
    "decomposition", "recording", "corpus", "measures", "power_law", "cosine", "scan", "allocation",
    "dashboard", "weighting", "calibration", "compression", "finetuning", "forecasts", "scale",
)  # fmt: skip
RESULTS = Path(__file__).parent / "results"


def main(names: tyro.conf.Positional[tuple[Literal[BENCHMARKS], ...]] = BENCHMARKS) -> None:
    """Run benchmarks, print them as tables and write them as JSON to tests/benchmarks/results/.

    Parameters
    ----------
    names
        Benchmarks to run; all by default.
    """
    console = Console(width=220)
    RESULTS.mkdir(exist_ok=True)
    for name in names:
        module = importlib.import_module(f"tests.benchmarks.{name}")
        rows = module.run()
        table = Table(title=module.__doc__.strip().splitlines()[0], title_justify="left")
        for column in rows[0]:
            table.add_column(
                column, justify="left" if isinstance(rows[0][column], str) else "right"
            )
        for row in rows:
            table.add_row(*(v if isinstance(v, str) else f"{v:,.4g}" for v in row.values()))
        console.print(table)
        machine = {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__}
        machine["threads"] = torch.get_num_threads()
        machine["bfloat16"] = is_native(device_of("auto"))
        machine["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        result = {"benchmark": name, "machine": machine, "rows": rows}
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    tyro.cli(main, prog="python -m tests.benchmarks")
