"""Pretrain a LLaMA-type model, and record its gradients and weights while it learns.

Writes DIR/spectra.zarr (the recording), DIR/checkpoints/, DIR/model/ (Hugging Face format, at the
end), DIR/pretrain.json (every option, as a file for --config) and DIR/data.json (what the corpus
was made from). Ctrl-C finishes the step, saves a checkpoint and exits; --resume continues from
there, bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from spectra_pretrain.launch import CommandOptions, TrainingCommand
from spectra_pretrain.options import PretrainOptions

PLACES = {
    "spectra.zarr": "gradients and singular values",
    "model": "the model, in Hugging Face format",
    "checkpoints": "to resume from",
    "pretrain.json": "every option, for --config",
}


@dataclass(frozen=True)
class Command(CommandOptions):
    """Options of `spectra pretrain`."""

    options: Annotated[PretrainOptions, tyro.conf.arg(name="")] = field(
        default_factory=PretrainOptions
    )
    out: Path = Path("runs/pretrain")
    """Folder of the run."""


def _job(options: PretrainOptions) -> Any:
    from spectra_pretrain.run import Pretraining  # takes seconds to import

    return Pretraining(options)


COMMAND = TrainingCommand(
    "pretrain", __doc__, Command, PretrainOptions, lambda start: PretrainOptions(), PLACES, _job
)


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    return COMMAND.main(arguments)
