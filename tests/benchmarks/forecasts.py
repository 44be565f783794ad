"""Forecasts and runs: what commands were said to read, need and take, and what they took.

On a LLaMA of two layers of 7B's shapes.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.llama_shaped import write_checkpoint

COMMANDS = {
    "scan": ["scan", "m", "--out", "s.zarr"],
    "scan --approximate": ["scan", "m", "--out", "a.zarr", "--approximate"],
    "compress --map": ["compress", "m", "--map", "map.json", "--out", "c"],
}


def run() -> list[dict[str, object]]:
    """Run every command, first with --dry-run."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_checkpoint(home / "m", layers=2)
        for name, command in COMMANDS.items():
            if "--map" in command:
                _run(home, ["allocate", "s.zarr", "--err", "0.5", "--out", "map.json"])
            said = json.loads(_run(home, [*command, "--dry-run", "--json"]))
            took = json.loads(_run(home, [*command, "--json"]))
            written = sum(p.stat().st_size for p in (home / command[-1]).rglob("*") if p.is_file())
            rows.append(
                {
                    "command": name,
                    "seconds said": said["seconds"],
                    "seconds": took["seconds"],
                    "ratio": said["seconds"] / took["seconds"],
                    "memory said, GB": said["memory"] / 1e9,
                    "memory, GB": took["peak_memory_bytes"] / 1e9,
                    "memory ratio": said["memory"] / took["peak_memory_bytes"],
                    "written/said": written / said["writes"] if written else float("nan"),
                }
            )
    return rows


def _run(home: Path, command: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "spectra", *command], cwd=home, capture_output=True, check=True
    )
    return done.stdout.decode()
