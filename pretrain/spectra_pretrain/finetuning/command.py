"""Finetune a checkpoint through its low-rank components, or by any of the paper's baselines.

On text (continual finetuning, the paper's table 8 by default) or on a downstream task (--task, its
table 9). Before the first step a table shows what is trained and its memory. Writes DIR/model/, a
(compressed) checkpoint again, or DIR/adapter/ with only what has changed; DIR/spectra.zarr (the
recording, with the rank map), DIR/checkpoints/, DIR/finetune.json (every option, as a file for
--config). Ctrl-C finishes the step, saves a checkpoint and exits; --resume continues from there,
bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from spectra_pretrain.finetuning.options import FinetuneOptions, recipe
from spectra_pretrain.launch import CommandOptions, TrainingCommand

PLACES = {
    "spectra.zarr": "gradients and singular values, with the rank map",
    "model": "the finetuned checkpoint",
    "adapter": "what has changed; loaded like a checkpoint, together with its base",
    "checkpoints": "to resume from",
    "finetune.json": "every option, for --config",
}


@dataclass(frozen=True)
class Command(CommandOptions):
    """Options of `spectra finetune`."""

    options: Annotated[FinetuneOptions, tyro.conf.arg(name="")] = field(
        default_factory=FinetuneOptions
    )
    out: Path = Path("runs/finetune")
    """Folder of the run."""


def _job(options: FinetuneOptions) -> Any:
    from spectra_pretrain.finetuning.run import Finetuning  # takes seconds to import

    return Finetuning(options)


COMMAND = TrainingCommand(
    "finetune", __doc__, Command, FinetuneOptions, lambda start: recipe(start.task), PLACES, _job
)


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    return COMMAND.main(arguments)
