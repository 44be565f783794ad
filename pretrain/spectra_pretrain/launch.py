"""The common part of commands that train: where options come from, and how a run ends."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from spectra.commands.options import UnknownOptionsError, parse, program_name
from spectra_data.errors import InputError
from spectra_pretrain.optionfile import differences, read_options
from spectra_pretrain.options import RunOptions
from spectra_pretrain.settings import Settings
from spectra_pretrain.ways import SHORT_FORMS, owner_of

Run = TypeVar("Run", bound=RunOptions)


@dataclass(frozen=True)
class CommandOptions:
    """Options of a command that trains, besides those of the run."""

    out: Path = Path("runs")
    """Folder of the run."""
    resume: bool = False
    """Resume the run in --out, or start it if there is none.
    Options come from the run's own file; those given again must agree with it."""
    config: Path | None = None
    """File of options to start from, as a run writes it; options given override it."""
    dry_run: bool = False
    """Print options, what is trained, and the time of two measured steps; write nothing."""
    json: bool = False
    """Print one JSON object with the run's figures on stdout."""


class Given(Protocol):
    """A parsed command line: a `CommandOptions` with the options of a run."""

    out: Path
    resume: bool
    dry_run: bool
    json: bool
    options: Any


@dataclass(frozen=True)
class Start:
    """The options that decide the defaults of the others."""

    out: Path
    resume: bool = False
    config: Path | None = None
    task: str | None = None
    optimizer: str | None = None
    train: str | None = None


@dataclass(frozen=True)
class TrainingCommand(Generic[Run]):
    """A command that trains."""

    name: str
    description: str | None
    given: type[Any]
    """Dataclass of its command line, a `Given`."""
    kind: type[Run]
    """Class of its run's options."""
    recipe: Callable[[Start], Run]
    """Makes the default options."""
    places: Mapping[str, str]
    """Files and folders of a run, with a description each."""
    job: Callable[[Run], Any]
    """Makes a `Job` from options."""

    def main(self, arguments: Sequence[str]) -> int:
        """Run the command; return the exit status."""
        given = self.parse(arguments)
        from spectra_pretrain.rehearsal import dry_run
        from spectra_pretrain.session import run

        if given.dry_run:
            dry_run(self.job(given.options), as_json=given.json)
            return 0
        job = self.job(given.options)
        summary, status = launched(
            self.name,
            lambda: run(job, given.out, resume=given.resume),
            reduced=job.options.reduced,
        )
        if summary is None:
            return status
        return report(self.name, summary, given.out, self.places, as_json=given.json)

    def parse(self, arguments: Sequence[str]) -> Given:
        """Read the options: given ones override --config or the run's, which override the recipe.

        Raises
        ------
        InputError
            When they are invalid, or not those that the run started with.
        """
        default = self.given()
        start = starting_point(arguments, default.out, self.name)
        recorded = recorded_options(start, self.name, self.kind)
        base = default_options(start, recorded, self.recipe(start))
        try:
            given = parse(
                self.given,
                arguments,
                command=self.name,
                description=self.description,
                default=replace(default, options=chosen(base, start)),
                pairs=start.resume or start.config is not None,
            )
        except UnknownOptionsError as error:
            if (hint := choice_of(error.options)) is not None:
                raise InputError(hint) from error
            raise
        if recorded is not None:
            given = replace(given, options=given.options.settled(recorded))
        return require_same(given, recorded)


def starting_point(arguments: Sequence[str], out: Path, command: str) -> Start:
    """Read the options that decide the defaults, before all others."""
    own = [argument for argument in arguments if argument not in ("-h", "--help")]
    return parse(Start, own, command=command, description=None, others=True, default=Start(out))


def choice_of(options: Sequence[str]) -> str | None:
    """A message if one of these options belongs to another choice, else None."""
    for option in options:
        if (owner := owner_of(option.removeprefix("--").replace("-", "_"))) is not None:
            return f"{option} goes with {owner}: leave it out"
    return None


def chosen(options: Run, start: Start) -> Run:
    """Options with the optimizer and parametrization that are given, so that their own are known.

    Raises
    ------
    InputError
        When a choice does not exist, or two exclude each other.
    """
    if start.train in SHORT_FORMS and start.optimizer not in (None, SHORT_FORMS[start.train][1]):
        raise InputError(
            f"--train {start.train} is optimised by {SHORT_FORMS[start.train][1]}, not by "
            f"{start.optimizer}"
        )
    given = (start.optimizer or options.optimizer.optimizer, start.train or options.trained.train)
    if given == (options.optimizer.optimizer, options.trained.train):
        return options
    return replace(
        options,
        optimizer=replace(options.optimizer, optimizer=given[0]),
        trained=replace(options.trained, train=given[1]),
        optimizer_settings=Settings(),
        layer_settings=Settings(),
    )


def recorded_options(start: Start, command: str, kind: type[Run]) -> Run | None:
    """The options of the run that is resumed; None if there is no run yet.

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
        way_out = f"; restore it from {copies[-1]}" if copies else ""
        raise InputError(f"{error}{way_out}") from error


def default_options(start: Start, recorded: Run | None, recipe: Run) -> Run:
    """The options that given ones override: those of --config, of the run, or of the recipe.

    Raises
    ------
    InputError
        When the file cannot be read.
    """
    if start.config is not None:
        return read_options(start.config, type(recipe))
    return recipe if recorded is None else recorded


def require_same(given: Given, recorded: RunOptions | None) -> Given:
    """Require that the options of a resumed run are those that it started with.

    Raises
    ------
    InputError
        When options differ; the message lists them.
    """
    if recorded is not None and (changed := differences(recorded, given.options)):
        raise InputError(
            f"the run in {given.out} has other options: {', '.join(changed)}; resume it "
            "without them, or choose another --out"
        )
    return given


def launched(
    command: str, train: Callable[[], dict[str, Any]], *, reduced: bool
) -> tuple[dict[str, Any] | None, int]:
    """Train, and turn an error that stops the run into a line and an exit status."""
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
            + (" or --precision float32" if reduced else "")
            + ", in a new run",
            file=sys.stderr,
        )
        return None, 1
    except SaveError as error:
        print(f"{name}: {error}. What was saved before is intact", file=sys.stderr)
        return None, 1


def report(
    command: str, summary: dict[str, Any], out: Path, places: Mapping[str, str], *, as_json: bool
) -> int:
    """Print a run's figures and files; return the exit status."""
    if as_json:
        print(json.dumps(summary))
    else:
        _print_summary(out, summary, places)
    for line in summary.get("recorder_left_out", []):
        print(f"spectra {command}: {line}", file=sys.stderr)
    if summary["recorder_stopped"]:
        stopped = summary["recorder_stopped"]
        print(f"spectra {command}: {stopped}; the model is complete", file=sys.stderr)
        return 1
    return 0


def _print_summary(out: Path, summary: dict[str, Any], places: Mapping[str, str]) -> None:
    if "accuracy" in summary:
        print(f"validation loss {summary['validation_loss']:.4f} after {summary['steps']:,} steps")
        print(
            f"{summary['task']}: accuracy {summary['accuracy']:.2%} (95 % interval "
            f"{summary['accuracy_low']:.1%} to {summary['accuracy_high']:.1%}), "
            f"{summary['correct']} of {summary['total']}; {summary['unparsed']} answers could not "
            "be read and count as wrong"
        )
        if summary.get("cut"):  # earlier versions did not count it
            print(
                f"{summary['cut']} prompts were longer than the model's window: their end was kept"
            )
    else:
        perplexity = summary["validation_perplexity"]
        print(f"validation perplexity {perplexity:.2f} after {summary['steps']:,} steps")
    print()
    for name, description in places.items():
        if (out / name).exists():
            print(f"  {out / name}  {description}")
    if summary["store"]:
        print()
        print("next:")
        program = program_name()
        print(f"  {program} report {summary['store']} --out {out / 'report.html'}")
        print(f"  {program} verify {summary['store']}")
