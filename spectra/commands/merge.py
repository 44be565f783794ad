"""Write a compressed checkpoint as a dense one that any tool loads.

Products replace factors; names, shapes and configuration are those of the original, so
llama.cpp's converter, vLLM and others read it without spectra. An adapter is merged into its base.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from spectra.commands.options import parse
from spectra.machine.console import Console
from spectra.machine.progress import Shown


@dataclass(frozen=True)
class Options:
    """Options of `spectra merge`."""

    checkpoint: tyro.conf.Positional[str]
    """Checkpoint of `spectra compress`, or an adapter's folder of `spectra finetune`."""
    out: Path
    """Folder to write; after an interruption, the same command resumes there."""
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Precision of stored weights; that of the factors by default."""
    compressed: bool = False
    """Keep low-rank layers low-rank: an adapter's base is compressed again."""
    json: bool = False
    """Print one JSON object on stdout instead of text."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Options, arguments, command="merge", description=__doc__)
    from spectra.compression.merge import merge
    from spectra.models.messages import silence_library_bars

    silence_library_bars()
    with Shown(Console(stderr=True)) as shown:
        made = merge(
            options.checkpoint,
            options.out,
            dtype=options.dtype,
            compressed=options.compressed,
            progress=shown.update,
        )
    found = {
        "merged": made.merged,
        "parameters": made.parameters,
        "bytes": made.bytes,
        "out": str(made.path),
    }
    if options.json:
        print(json.dumps(found))
        return 0
    print(
        f"{made.merged} products formed; {made.parameters:,} parameters, {made.bytes / 1e9:.3g} GB"
    )
    print(f"wrote {made.path}")
    return 0
