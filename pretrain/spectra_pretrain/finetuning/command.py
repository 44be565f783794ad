"""Finetune a checkpoint through its low-rank components, or by any of the paper's baselines.

On text (continual finetuning, the paper's table 8 by default) or on a downstream task (--task, its
table 9). Before the first step a table says what is trained and what it takes in memory. Writes
DIR/model/, a (compressed) checkpoint again, or DIR/adapter/ with only what has changed;
DIR/spectra.zarr (the recording, with the rank map), DIR/checkpoints/, DIR/finetune.json (every
option, to pass back by --config). Ctrl-C finishes the step, saves a checkpoint and exits; --resume
goes on from there, bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from spectra.commands.options import parse
from spectra_pretrain.finetuning.options import FinetuneOptions, recipe
from spectra_pretrain.launch import (
    default_options,
    launched,
    recorded_options,
    report,
    require_same,
    starting_point,
)

NAME = "finetune"
PLACES = {
    "spectra.zarr": "gradients and singular values, with the rank map",
    "model": "the finetuned checkpoint",
    "adapter": "what has changed; loaded like a checkpoint, beside its base",
    "checkpoints": "to resume from",
    "finetune.json": "every option, for --config",
}


@dataclass(frozen=True)
class Command:
    """Options of `spectra finetune`."""

    options: Annotated[FinetuneOptions, tyro.conf.arg(name="")] = field(
        default_factory=FinetuneOptions
    )
    out: Path = Path("runs/finetune")
    """Folder of the run."""
    resume: bool = False
    """Go on with the run in --out, or start it if there is none. Options are taken from its
    finetune.json; those given, as in the command that started it, must agree with it."""
    config: Path | None = None
    """File of options to start from (a run's finetune.json); options given override it."""
    dry_run: bool = False
    """Print options, what is trained, and the time of two measured steps; write nothing."""
    json: bool = False
    """Print one JSON object with the run's figures on stdout."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    command = _parse(arguments)
    from spectra_pretrain.finetuning.run import dry_run, finetune

    if command.dry_run:
        dry_run(command.options, as_json=command.json)
        return 0
    summary, status = launched(
        NAME,
        lambda: finetune(command.options, command.out, resume=command.resume),
        precision=command.options.precision,
    )
    if summary is None:
        return status
    return report(NAME, summary, command.out, PLACES, as_json=command.json)


def _parse(arguments: Sequence[str]) -> Command:
    """Read the options: those given, over those of the run or of --config, over the recipe."""
    start = starting_point(arguments, Command.out, NAME)
    recorded = recorded_options(start, NAME, FinetuneOptions)
    default = Command(options=default_options(start, recorded, recipe(start.task)))
    command = parse(
        Command,
        arguments,
        command=NAME,
        description=__doc__,
        default=default,
        pairs=start.resume or start.config is not None,
    )
    return require_same(command, recorded)
