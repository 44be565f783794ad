"""Pretrain a LLaMA-type model, with its gradients and weights recorded while it learns.

Writes DIR/spectra.zarr (the recording), DIR/checkpoints/, DIR/model/ (Hugging Face format, at the
end), DIR/pretrain.json (every option, to pass back by --config) and DIR/data.json (what the corpus
was made of). Ctrl-C finishes the step, saves a checkpoint and exits; --resume goes on from there,
bit for bit.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from data.errors import InputError
from pretrain.options import PretrainOptions, differences, read_options
from spectra.commands.options import parse, program_name


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
    pretrain.json; those given must agree with it."""
    config: Path | None = None
    """File of options to start from (a run's pretrain.json); options given override it."""
    dry_run: bool = False
    """Print options, arithmetic and the time of two measured steps; write nothing."""
    json: bool = False
    """Print one JSON object with the run's figures on stdout."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    command = _parse(arguments)
    from pretrain.checkpoint import SaveError
    from pretrain.finiteness import NonFiniteError
    from pretrain.run import RunInterruptedError, dry_run, pretrain

    try:
        if command.dry_run:
            dry_run(command.options, as_json=command.json)
            return 0
        summary = pretrain(command.options, command.out, resume=command.resume)
    except RunInterruptedError as stop:
        print(f"spectra pretrain: {stop}", file=sys.stderr)
        return 128 + stop.signal
    except NonFiniteError as error:
        print(
            f"spectra pretrain: {error}. That step was not made; try a lower --learning-rate"
            + (" or --precision float32" if command.options.precision == "bfloat16" else "")
            + ", in another --out",
            file=sys.stderr,
        )
        return 1
    except SaveError as error:
        print(f"spectra pretrain: {error}. What was saved before is whole", file=sys.stderr)
        return 1
    if command.json:
        print(json.dumps(summary))
    else:
        _print_summary(command.out, summary)
    for line in summary.get("recorder_left_out", []):
        print(f"spectra pretrain: {line}", file=sys.stderr)
    if summary["recorder_stopped"]:
        print(
            f"spectra pretrain: {summary['recorder_stopped']}; the model is whole", file=sys.stderr
        )
        return 1
    return 0


def _parse(arguments: Sequence[str]) -> Command:
    """Read the options: those given, over those of the run or of --config, over the defaults."""
    start = _parse_start(arguments)
    saved = start.out / "pretrain.json"
    if start.resume and start.config is not None:
        raise InputError("--resume takes its options from the run: leave out --config")
    source = saved if start.resume and saved.exists() else start.config
    recorded = PretrainOptions() if source is None else read_options(source)
    default = Command(options=recorded)
    command = parse(Command, arguments, command="pretrain", description=__doc__, default=default)
    if source == saved and (changed := differences(recorded, command.options)):
        raise InputError(
            f"the run in {command.out} has other options: {', '.join(changed)}; resume it "
            "without them, or choose another --out"
        )
    return command


@dataclass(frozen=True)
class _Start:
    """The options that say where the defaults of the others come from."""

    out: Path = Command.out
    resume: bool = False
    config: Path | None = None


def _parse_start(arguments: Sequence[str]) -> _Start:
    if {"-h", "--help"}.intersection(arguments):
        return _Start()
    return parse(_Start, arguments, command="pretrain", description=None, others=True)


def _print_summary(out: Path, summary: dict[str, Any]) -> None:
    perplexity = summary["validation_perplexity"]
    print(f"validation perplexity {perplexity:.2f} after {summary['steps']:,} steps")
    print()
    places = {
        "spectra.zarr": "gradients and singular values",
        "model": "the model, in Hugging Face format",
        "checkpoints": "to resume from",
        "pretrain.json": "every option, for --config",
    }
    for name, what in places.items():
        if (out / name).exists():
            print(f"  {out / name}  {what}")
    if summary["store"]:
        print()
        print("next:")
        program = program_name()
        print(f"  {program} report {summary['store']} --out {out / 'report.html'}")
        print(f"  {program} verify {summary['store']}")
