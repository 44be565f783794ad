"""Processes that the library starts run none of the working directory's files."""

import os
import subprocess
import sys
import types

import pytest

import spectra
from spectra.machine.interpreter import run_module, search_path
from spectra_data import program

SHADOWED = ("data", "queue", "torch", "numpy", "zarr", "json")


def test_a_module_runs_without_the_files_of_the_working_directory(tmp_path):
    for name in SHADOWED:
        (tmp_path / f"{name}.py").write_text(f"open('{name}.ran', 'w')")
    run = subprocess.run(
        [*run_module("spectra"), "--version"],
        cwd=tmp_path,
        env=os.environ | search_path(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == f"spectra {spectra.__version__}\n"
    assert list(tmp_path.glob("*.ran")) == []


def test_the_working_directory_is_no_place_to_find_modules(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/elsewhere", *sys.path])
    paths = search_path()["PYTHONPATH"].split(os.pathsep)
    assert str(tmp_path) not in paths
    assert "" not in paths
    assert paths[0] == "/elsewhere"


@pytest.mark.parametrize("overwritten", [True, False])
def test_another_package_in_our_place_is_noticed(monkeypatch, capsys, overwritten):
    monkeypatch.setattr(sys, "argv", ["spectra", "--version"])
    if overwritten:
        monkeypatch.setitem(sys.modules, "spectra", types.ModuleType("spectra"))
    else:  # it lies before ours, which is not found at all
        monkeypatch.setitem(sys.modules, "spectra.cli", None)
    assert program.main() == 2
    said = capsys.readouterr().err
    assert "pip uninstall spectra" in said
    assert said.count("\n") == 1


def test_the_program_is_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["spectra", "--version"])
    assert program.main() == 0
    assert capsys.readouterr().out == f"spectra {spectra.__version__}\n"
