"""What the commands that train have in common: where options come from, and how a run ends."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from spectra.commands.options import parse, program_name
from spectra_data.errors import InputError
from spectra_pretrain.optionfile import differences, read_options
from spectra_pretrain.options import RunOptions

Run = TypeVar("Run", bound=RunOptions)


class TrainingCommand(Protocol):
    """Options of a command that trains."""

    @property
    def options(self) -> RunOptions: ...

    @property
    def out(self) -> Path: ...


Command = TypeVar("Command", bound=TrainingCommand)


@dataclass(frozen=True)
class Start:
    """The options that say where the defaults of the others come from."""

    out: Path
    resume: bool = False
    config: Path | None = None
    task: str | None = None


def starting_point(arguments: Sequence[str], out: Path, command: str) -> Start:
    """Read them before all others."""
    if {"-h", "--help"}.intersection(arguments):
        return Start(out)
    return parse(
        Start, arguments, command=command, description=None, others=True, default=Start(out)
    )


def recorded_options(start: Start, command: str, kind: type[Run]) -> Run | None:
    """The options of the run that is resumed; None where there is none yet.

    Raises
    ------
    InputError
        When its file cannot be read.
    """
    saved = start.out / f"{command}.json"
    if not (start.resume and saved.exists()):
        return None
    try:
        return read_options(saved, kind)
    except InputError as error:
        copies = sorted(start.out.glob(f"checkpoints/*/run/{command}.json"))
        way_out = f"; put back its copy, {copies[-1]}" if copies else ""
        raise InputError(f"{error}{way_out}") from error


def default_options(start: Start, recorded: Run | None, recipe: Run) -> Run:
    """The options that those given are put over: of --config, of the run, or the recipe's.

    Raises
    ------
    InputError
        When the file cannot be read.
    """
    if start.config is not None:
        return read_options(start.config, type(recipe))
    return recipe if recorded is None else recorded


def require_same(given: Command, recorded: RunOptions | None) -> Command:
    """Require that the options of a resumed run are those that it began with.

    Raises
    ------
    InputError
        With those that are not.
    """
    if recorded is not None and (changed := differences(recorded, given.options)):
        raise InputError(
            f"the run in {given.out} has other options: {', '.join(changed)}; resume it "
            "without them, or choose another --out"
        )
    return given


def launched(
    command: str, train: Callable[[], dict[str, Any]], *, precision: str
) -> tuple[dict[str, Any] | None, int]:
    """Train, and turn what stops a run into a line and an exit status."""
    from spectra_pretrain.checkpoint import SaveError
    from spectra_pretrain.finiteness import NonFiniteError
    from spectra_pretrain.session import RunInterruptedError

    name = f"spectra {command}"
    try:
        return train(), 0
    except RunInterruptedError as stop:
        print(f"{name}: {stop}", file=sys.stderr)
        return None, 128 + stop.signal
    except NonFiniteError as error:
        print(
            f"{name}: {error}. That step was not made; try a lower --learning-rate"
            + (" or --precision float32" if precision == "bfloat16" else "")
            + ", in another run",
            file=sys.stderr,
        )
        return None, 1
    except SaveError as error:
        print(f"{name}: {error}. What was saved before is whole", file=sys.stderr)
        return None, 1


def report(
    command: str, summary: dict[str, Any], out: Path, places: dict[str, str], *, as_json: bool
) -> int:
    """Print what a run reached and left; returns the exit status."""
    if as_json:
        print(json.dumps(summary))
    else:
        _print_summary(out, summary, places)
    for line in summary.get("recorder_left_out", []):
        print(f"spectra {command}: {line}", file=sys.stderr)
    if summary["recorder_stopped"]:
        stopped = summary["recorder_stopped"]
        print(f"spectra {command}: {stopped}; the model is whole", file=sys.stderr)
        return 1
    return 0


def _print_summary(out: Path, summary: dict[str, Any], places: dict[str, str]) -> None:
    if "accuracy" in summary:
        print(f"validation loss {summary['validation_loss']:.4f} after {summary['steps']:,} steps")
        print(
            f"{summary['task']}: accuracy {summary['accuracy']:.2%} (95 % interval "
            f"{summary['accuracy_low']:.1%} to {summary['accuracy_high']:.1%}), "
            f"{summary['correct']} of {summary['total']}; {summary['unparsed']} answers could not "
            "be read and count as wrong"
        )
        if summary.get("cut"):  # runs that ended before it was counted have none
            print(
                f"{summary['cut']} prompts were longer than the model's window: their end was kept"
            )
    else:
        perplexity = summary["validation_perplexity"]
        print(f"validation perplexity {perplexity:.2f} after {summary['steps']:,} steps")
    print()
    for name, what in places.items():
        if (out / name).exists():
            print(f"  {out / name}  {what}")
    if summary["store"]:
        print()
        print("next:")
        program = program_name()
        print(f"  {program} report {summary['store']} --out {out / 'report.html'}")
        print(f"  {program} verify {summary['store']}")
