"""Pretrain a LLaMA-type model, with its gradients and weights recorded while it learns.

Writes DIR/spectra.zarr (the recording), DIR/checkpoints/, DIR/model/ (Hugging Face format, at the
end), DIR/pretrain.json (every option, to pass back by --config) and DIR/data.json (what the corpus
was made of). Ctrl-C finishes the step, saves a checkpoint and exits; --resume goes on from there,
bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from spectra.commands.options import parse
from spectra_pretrain.launch import (
    default_options,
    launched,
    recorded_options,
    report,
    require_same,
    starting_point,
)
from spectra_pretrain.options import PretrainOptions

NAME = "pretrain"
PLACES = {
    "spectra.zarr": "gradients and singular values",
    "model": "the model, in Hugging Face format",
    "checkpoints": "to resume from",
    "pretrain.json": "every option, for --config",
}


@dataclass(frozen=True)
class Command:
    """Options of `spectra pretrain`."""

    options: Annotated[PretrainOptions, tyro.conf.arg(name="")] = field(
        default_factory=PretrainOptions
    )
    out: Path = Path("runs/pretrain")
    """Folder of the run."""
    resume: bool = False
    """Go on with the run in --out, or start it if there is none. Options are taken from its
    pretrain.json; those given, as in the command that started it, must agree with it."""
    config: Path | None = None
    """File of options to start from (a run's pretrain.json); options given override it."""
    dry_run: bool = False
    """Print options, arithmetic and the time of two measured steps; write nothing."""
    json: bool = False
    """Print one JSON object with the run's figures on stdout."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    command = _parse(arguments)
    from spectra_pretrain.run import dry_run, pretrain

    if command.dry_run:
        dry_run(command.options, as_json=command.json)
        return 0
    summary, status = launched(
        NAME,
        lambda: pretrain(command.options, command.out, resume=command.resume),
        precision=command.options.precision,
    )
    if summary is None:
        return status
    return report(NAME, summary, command.out, PLACES, as_json=command.json)


def _parse(arguments: Sequence[str]) -> Command:
    """Read the options: those given, over those of the run or of --config, over the defaults."""
    start = starting_point(arguments, Command.out, NAME)
    recorded = recorded_options(start, NAME, PretrainOptions)
    default = Command(options=default_options(start, recorded, PretrainOptions()))
    command = parse(
        Command,
        arguments,
        command=NAME,
        description=__doc__,
        default=default,
        pairs=start.resume or start.config is not None,
    )
    return require_same(command, recorded)
