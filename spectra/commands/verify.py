"""Check that a store is whole: every file as it was written, every committed snapshot complete.

Exits 0 if it is, 1 with a line for every fault if it is not, 2 if there is no store to check.
A store that holds no snapshot is not whole.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import tyro

from spectra.commands.options import parse


@dataclass(frozen=True)
class Options:
    """Options of `spectra verify`."""

    store: tyro.conf.Positional[str]
    """Store to check, e.g. runs/demo/spectra.zarr."""
    json: bool = False
    """Print one JSON object on stdout instead of text."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Options, arguments, command="verify", description=__doc__)
    from spectra.store.verify import verify

    verdict = verify(options.store)
    if options.json:
        print(json.dumps(asdict(verdict) | {"whole": verdict.whole}))
    else:
        several = "" if verdict.snapshots == 1 else "s"
        counts = f"{verdict.snapshots} snapshot{several}, {verdict.train_steps} training steps"
        print(f"{options.store}: {'whole' if verdict.whole else 'NOT whole'} ({counts})")
        for line in verdict.problems:
            print(f"  fault: {line}")
        for line in verdict.notes:
            print(f"  note: {line}")
    return 0 if verdict.whole else 1
