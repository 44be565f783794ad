"""The `spectra` command: finds a subcommand, turns its options into a dataclass, and runs it.

A subcommand is a module with a function `main(arguments)` that returns the exit status; its options
are a dataclass whose documentation strings are the help. A module is imported only when its command
is run, and imports torch and other large libraries only in its functions: help and wrong options
do not wait for them.
"""

import contextlib
import difflib
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import spectra
from spectra.checkpoint.notes import CheckpointNote
from spectra_data.errors import InputError, first_line, is_out_of_memory
from spectra_data.streams import plain_streams

COMMANDS = {
    "allocate": ("spectra.commands.allocate", "a rank map: the rank of every matrix"),
    "compress": (
        "spectra.commands.compress",
        "a smaller checkpoint, by a rank map or to a budget",
    ),
    "dashboard": (
        "spectra_dashboard.command",
        "every store and map below a folder, live, in a browser",
    ),
    "evaluate": ("spectra.commands.evaluate", "perplexity, tasks, memory and speed of a model"),
    "experiment": ("spectra.commands.experiment", "a table or figure of the paper, measured"),
    "export": ("spectra.commands.export", "a rank map in other tools' formats"),
    "finetune": (
        "spectra_pretrain.finetuning.command",
        "finetuning through low-rank components, and every baseline",
    ),
    "merge": ("spectra.commands.merge", "a compressed checkpoint as a dense one"),
    "metrics": (
        "spectra.commands.metrics",
        "ranks, heavy tails and bulk of every matrix and snapshot, as a table",
    ),
    "path": ("spectra.commands.path", "ranks and costs of WeLore at every ERR, stored"),
    "pretrain": ("spectra_pretrain.command", "instrumented pretraining of a LLaMA-type model"),
    "prune": ("spectra.commands.prune", "zeros in a model's matrices, or in its N-LRCs"),
    "report": ("spectra.commands.report", "all figures of a store in one file that opens offline"),
    "scan": (
        "spectra.commands.scan",
        "spectra of every matrix of one or several checkpoints, in bounded memory",
    ),
    "verify": ("spectra.commands.verify", "is a store whole?"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 wrong input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape what the locale cannot encode
            stream.reconfigure(errors="backslashreplace")
    with plain_streams():
        return _run(arguments)


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"spectra {spectra.__version__}")
        return 0
    name, *rest = arguments
    if any("\0" in argument for argument in arguments):
        return _failed("spectra: an argument holds a NUL character, which no name can hold", 2)
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(COMMANDS)}"
        return _failed(f"spectra: no command {name!r}; {hint}", 2)
    try:
        with _notes_as_lines(name):
            return int(import_module(COMMANDS[name][0]).main(rest))
    except InputError as error:
        return _failed(f"spectra {name}: {error}", 2)
    except KeyboardInterrupt:
        return _failed(f"spectra {name}: interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:
        # the reader of our output is gone; keep Python from complaining about it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # from the machine: a full disk, too few descriptors
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"spectra {name}: {where}{error.strerror or error}", 1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _failed(f"spectra {name}: out of memory: {first_line(error)}", 1)


def _failed(line: str, status: int) -> int:
    print(line, file=sys.stderr)
    return status


@contextlib.contextmanager
def _notes_as_lines(command: str) -> Iterator[None]:
    """Print notes about checkpoints as lines of the command, each once."""
    said: set[str] = set()
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if not issubclass(category, CheckpointNote):
                shown(message, category, *where)
            elif str(message) not in said:
                said.add(str(message))
                print(f"spectra {command}: {message}", file=sys.stderr)

        warnings.simplefilter("always", CheckpointNote)
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: spectra COMMAND [options]",
            "",
            "See how language models become low-rank while they are trained, and act on it.",
            "",
            *lines,
            "",
            "`spectra COMMAND --help` lists a command's options with their defaults.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
