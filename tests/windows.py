"""A Python that lacks what Windows lacks: ``python -m tests.windows '[["scan", …], …]'``.

Libraries are imported first: those of Linux need what is then taken away, those of Windows do not.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from typing import Any

import accelerate  # noqa: F401
import psutil  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

ABSENT_MODULES = ("fcntl", "grp", "pwd", "resource", "termios")
ABSENT_FUNCTIONS = {
    os: ("getuid", "memfd_create", "nice", "sched_getaffinity", "set_blocking", "sysconf"),
    signal: ("pthread_sigmask",),
}


def become_windows() -> None:
    """Take away modules, functions, and what functions do."""
    for name in ABSENT_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in ABSENT_FUNCTIONS.items():
        for name in names:
            delattr(module, name)
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    open_file, start, library = os.open, subprocess.Popen.__init__, ctypes.CDLL.__init__

    def open_no_folder(path: Any, *arguments: Any, **options: Any) -> int:
        if isinstance(path, str | os.PathLike) and os.path.isdir(path):  # noqa: PTH112
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, *arguments, **options)

    def start_plainly(self: Any, *arguments: Any, **options: Any) -> None:
        if options.get("preexec_fn") or options.get("pass_fds"):
            raise ValueError("preexec_fn and pass_fds are not supported on Windows platforms")
        start(self, *arguments, **options)

    def load_by_name(self: Any, name: Any, *arguments: Any, **options: Any) -> None:
        if name is None:
            raise TypeError("bad argument type for built-in operation")
        library(self, name, *arguments, **options)

    os.open = open_no_folder  # type: ignore[assignment]
    subprocess.Popen.__init__ = start_plainly  # type: ignore[method-assign, assignment]
    ctypes.CDLL.__init__ = load_by_name  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    become_windows()
    from spectra.cli import main

    # as words arrive from a shell, whatever the locale
    commands = [[os.fsdecode(word.encode()) for word in c] for c in json.loads(sys.argv[1])]
    print([main(command) for command in commands])
