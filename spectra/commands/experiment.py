"""Reproduce a result of the paper on a checkpoint of any size: table, CSV and figure.

`spectra experiment NAME --help` lists the options of an experiment. Experiments that finetune say
where their measurement differs from the paper's. Measurements are kept in --out or in --lab, so
that the same command resumes after a kill.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.table import Table

from spectra.commands.options import UnknownOptionsError, parse
from spectra.experiments.registry import ELSEWHERE, EXPERIMENTS, owners_of
from spectra.experiments.settings import Settings
from spectra.machine.console import Console
from spectra.machine.devices import device_of
from spectra.machine.progress import Shown
from spectra_data.errors import InputError

if TYPE_CHECKING:
    from spectra.experiments.experiment import Outcome


@dataclass(frozen=True)
class Options:
    """Options of `spectra experiment`."""

    name: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar=f"{{{','.join(EXPERIMENTS)}}}", help=f"{EXPERIMENTS.help()}."),
    ] = tyro.MISSING
    checkpoint: tyro.conf.Positional[str] = "HuggingFaceTB/SmolLM2-135M"
    """Checkpoint: a folder, a .gguf file, or a hub name; by default one that suits two cores."""
    out: Path | None = None
    """Folder for results; runs/experiments/NAME by default."""
    settings: Settings = field(default_factory=Settings)
    """Settings of the named experiment."""
    device: str | None = None
    """Device to compute on, cpu or cuda; by default cuda if available."""
    json: bool = False
    """Print one JSON object on stdout instead of text."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = _parse(arguments)
    experiment = EXPERIMENTS[options.name]
    out = options.out or Path("runs", "experiments", options.name)
    with Shown(Console(stderr=True)) as shown:
        outcome = experiment.run(
            options.checkpoint,
            options.settings,
            out,
            device=str(device_of(options.device)),
            progress=shown.update,
        )
    if options.json:
        found = {"title": outcome.title, "rows": outcome.rows, "claims": outcome.claims}
        print(json.dumps(found | {"failed": outcome.failed}))
    else:
        _print(outcome)
    for line in outcome.failed:
        print(f"spectra experiment: {line}", file=sys.stderr)
    return 1 if outcome.failed else 0


def _parse(arguments: Sequence[str]) -> Options:
    """Read the options: those of every experiment, and those of the named one.

    Raises
    ------
    InputError
        When they do not fit; for an option of other experiments, the message names these.
    """
    name = _named(arguments)
    unnamed = f"name an experiment first: {', '.join(EXPERIMENTS)}"
    if name is None:
        _require_measured(arguments)
    default = Options()
    if name is not None:
        default = replace(default, settings=EXPERIMENTS[name].settings())
    try:
        options = parse(
            Options, arguments, command="experiment", description=__doc__, default=default
        )
    except InputError as error:
        if name is None:
            raise InputError(unnamed) from error
        for option in error.options if isinstance(error, UnknownOptionsError) else ():
            if owners := owners_of(option.removeprefix("--").replace("-", "_")):
                raise InputError(
                    f"{option} goes with {', '.join(owners)}, not {name}: leave it out"
                ) from error
        raise
    if options.name.startswith("-"):  # older releases of tyro take an unknown option for the name
        raise InputError(unnamed)
    if options.name != name:
        raise InputError(f"no experiment {options.name!r}; there are: {', '.join(EXPERIMENTS)}")
    return options


def _require_measured(arguments: Sequence[str]) -> None:
    """Require no figure of the paper that something else draws."""
    for word in arguments:
        if word in ELSEWHERE:
            raise InputError(f"{word} is no experiment: {ELSEWHERE[word]}")


def _named(arguments: Sequence[str]) -> str | None:
    """Name of the experiment, before its options are known."""
    for before, word in zip(("", *arguments), arguments, strict=False):
        value = before.startswith("--") and "=" not in before and before != "--json"
        if word in EXPERIMENTS and not value:
            return word
    return None


def _print(outcome: "Outcome") -> None:
    table = Table(title=outcome.title, title_justify="left")
    for column in outcome.columns:
        words = column in ("recipe", "train", "task")
        table.add_column(column.replace("_", " "), justify="left" if words else "right")
    for row in outcome.table:
        table.add_row(*(_shown(column, row.get(column)) for column in outcome.columns))
    Console(width=120).print(table)
    for claim in outcome.claims:
        print(claim)
    for path in outcome.files:
        print(f"wrote {path}")


def _shown(column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value.replace(" ± ", "±")  # which a narrow column would split
    if column.startswith("peak") or column.endswith("_bytes"):
        return f"{value / 1e6:,.0f} MB" if value > 1e7 else f"{value / 1e3:,.0f} kB"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
