"""Write a rank map in the format of another tool.

json, csv and parquet hold every matrix; peft is a LoRA adapter_config.json for the LRCs with their
ranks; llm-compressor is a recipe for what stays whole, which ignores the LRCs; asvd holds
truncation_ranks; ranks and ratios are {name: number}; table is for reading.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from spectra.commands.options import parse


@dataclass(frozen=True)
class Options:
    """Options of `spectra export`."""

    map: tyro.conf.Positional[Path]
    """Rank map, as `spectra allocate` writes it."""
    format: Literal[
        "json", "csv", "parquet", "peft", "llm-compressor", "asvd", "ranks", "ratios", "table"
    ]
    """Format to write."""
    out: Path | None = None
    """File to write; the map's name with the format's ending by default."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Options, arguments, command="export", description=__doc__)
    from spectra.allocation.rankmap import RankMap
    from spectra.exports.formats import FORMATS, export, left_out
    from spectra.store.destination import messages_beside, require_writable

    rank_map = RankMap.load(options.map)
    suffix = FORMATS[options.format].suffix
    out = options.out or options.map.with_name(f"{options.map.stem}-{options.format}{suffix}")
    require_writable(out)
    export(rank_map, options.format, out)
    with messages_beside(out):
        for skipped in left_out(rank_map, options.format):
            print(f"left out: {skipped.name}, {skipped.reason}")
        if rank_map.approximate:
            print("the map was made from approximate spectra")
        print(f"wrote {out} ({FORMATS[options.format].summary})")
    return 0
