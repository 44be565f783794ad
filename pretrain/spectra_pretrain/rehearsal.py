"""`--dry-run`: a forecast of a run from two measured steps; nothing is written."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch

from spectra.machine.console import Console
from spectra.machine.devices import device_of
from spectra.models.messages import silence_library_bars
from spectra.recording.micro_batches import Probe
from spectra_data.errors import InputError
from spectra_pretrain.finiteness import NonFiniteError
from spectra_pretrain.loop import Training
from spectra_pretrain.machine import keep_freed_memory, precision_line
from spectra_pretrain.memory import sizes, table_of
from spectra_pretrain.optionfile import to_dict
from spectra_pretrain.options import RunOptions
from spectra_pretrain.plan import make_plan, measure
from spectra_pretrain.trainee import Trainee


@dataclass(frozen=True)
class Draft:
    """A run that is ready to be measured."""

    options: RunOptions
    """Options of the run, with the values that would be chosen for ``auto``."""
    title: str
    """Model that is trained, in words."""
    about: str
    """Data that it is trained on, in words."""
    trainee: Trainee
    training: Training
    probe: Probe
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Further figures for --json."""


class Drafted(Protocol):
    """A kind of run that can be rehearsed."""

    @property
    def options(self) -> RunOptions:
        """Everything that decides the run."""
        ...

    def draft(self, device: torch.device) -> Draft:
        """The run on tokens that need no tokenised corpus."""
        ...


def dry_run(job: Drafted, *, as_json: bool = False) -> None:
    """Print the forecast of a run, in words or as one JSON object, and write nothing.

    Raises
    ------
    InputError
        When the run cannot be made.
    """
    silence_library_bars()
    console = Console()
    device = device_of(job.options.machine.device)
    keep_freed_memory(device)
    draft = job.draft(device)
    options, precision = draft.options, precision_line(draft.options, device)
    groups = draft.trainee.groups(options)
    plan = make_plan(options, draft.trainee.model)
    probe = draft.probe if options.recording.wanted else None
    try:
        forecast = measure(options, draft.training, probe)
    except NonFiniteError as error:
        raise InputError(f"the model cannot be trained: {error}") from error
    if as_json:
        figures = asdict(plan) | asdict(forecast) | dict(draft.figures)
        figures |= {"groups": [asdict(group) for group in groups]} | sizes(groups)
        figures["precision"] = precision
        print(json.dumps({"options": to_dict(options)} | figures))
        return
    console.print_json(json.dumps(to_dict(options)))
    for line in [
        *plan.lines(options, draft.title, draft.about),
        table_of(groups),
        precision,
        *forecast.lines(options),
        "nothing was written (--dry-run)",
    ]:
        console.print(line, highlight=False, soft_wrap=True)
