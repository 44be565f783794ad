"""What commands show of names in files of others."""

import io
import os
import pty
import shutil

import numpy as np
import pytest
from rich.table import Table

from spectra.cli import main
from spectra.machine.console import Console
from spectra.machine.progress import Shown
from spectra.matrices import Matrix
from spectra.store.destination import write_result
from spectra.store.layout import Contents, Layout
from spectra.store.writer import StoreWriter

ODD = "\x1b]0;title\x07[red]\x1b[2J[/x]:smile:"
SHOWN = r"\x1b]0;title\x07[red]\x1b[2J[/x]:smile:"
OBEYED = ("\x1b]", "\x1b[2J", "\x07", "\x9b")


def test_a_table_shows_names_as_they_are():
    out = io.StringIO()
    table = Table(title=ODD)
    table.add_column(ODD)
    table.add_row(ODD)
    Console(file=out, width=80).print(table)
    title, _, head, _, row, *_ = out.getvalue().splitlines()
    assert title.strip() == SHOWN
    for line in (head, row):
        assert line.strip(" │┃") == SHOWN
    assert len(head) == len(row)


def test_a_bar_shows_names_as_they_are_and_moves():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with Shown(console) as shown:
        shown.update(ODD, 1, 2)
        console.print(ODD, highlight=False)
    assert out.getvalue().count(SHOWN) >= 2
    assert "\x1b[?25l" in out.getvalue()
    assert not any(code in out.getvalue() for code in OBEYED)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A store with odd names under an odd name."""
    path = tmp_path_factory.mktemp("odd") / (ODD.replace("/", "") + ".zarr")
    matrices = (Matrix(ODD, 0, ODD, 8, 8), Matrix("model.layers.0.q_proj", 0, "q", 8, 8))
    writer = StoreWriter.create(
        path, Layout(matrices, 1, 1, Contents(spectra=("weight",), sketch=0)), {"kind": "scan"}
    )
    values = np.linspace(2, 1, 8, dtype=np.float32)
    writer.write_snapshot(0, {"spectra/weight": np.stack([values, values])})
    writer.close()
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["verify"],
        ["path"],
        ["report", "--out", "{0}.html"],
        ["allocate", "--err", "0.5"],
        ["metrics", "--out", "{0}.csv"],
        [f"--{ODD}"],
    ],
)
def test_commands_show_names_as_they_are(odd, tmp_path, capfd, words):
    store = tmp_path / odd.name
    shutil.copytree(odd, store)
    command, *more = words
    assert main([command, str(store), *(word.format(store) for word in more)]) in (0, 1, 2)
    shown = "".join(capfd.readouterr())
    assert r"\x1b]0;title" in shown
    assert not {"\x1b", "\x07"} & set(shown)


def test_a_table_written_to_a_terminal_is_not_obeyed():
    reader, writer = pty.openpty()
    try:
        write_result(os.ttyname(writer), f"name\n{ODD}\n".encode())
        assert os.read(reader, 1000).decode().split() == ["name", SHOWN]
    finally:
        os.close(reader)
        os.close(writer)
