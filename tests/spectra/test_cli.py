"""The command: help, one-line errors, exit statuses."""

import errno
import json
import os
import subprocess
import sys

import pytest
import zarr

from spectra.cli import COMMANDS, main


def run(capsys, *arguments):
    try:
        status = main(arguments)
    except SystemExit as stop:  # --help
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


def test_the_overview_lists_every_command(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    assert all(name in out for name in COMMANDS)
    assert run(capsys)[0] == 2
    assert run(capsys, "--version")[:2][0] == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_defaults(capsys, command):
    status, out, _ = run(capsys, command, "--help")
    assert status == 0
    assert f"usage: spectra {command}" in out
    assert "(default: " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "no command 'nonsense'; there are: allocate, compress, dashboard"),
        (["verify"], "required"),
        (["verify", "/nowhere.zarr"], "no store at /nowhere.zarr"),
        (["report", "/nowhere.zarr"], "no store at /nowhere.zarr"),
        (["pretrain", "--steps", "many"], "--steps"),
        (["pretrain", "--stepps", "3"], "--stepps"),
        (["pretrain", "--precision", "float8"], "float8"),
        (["pretrain", "--steps", "0", "--clip", "-1"], "--steps is at least 1, not 0; --clip"),
        (["pretrain", "--config", "/nowhere.json"], "cannot read /nowhere.json"),
        (["pretrain", "--out", "/dev/null/run"], "cannot write /dev/null/run"),
    ],
)
def test_wrong_input_gives_one_line_and_status_2(capsys, arguments, message):
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert "│" not in err


def test_verify_tells_a_whole_store_from_a_broken_one(capsys, store):
    status, out, _ = run(capsys, "verify", str(store))
    assert (status, out) == (0, f"{store}: whole (4 snapshots, 7 training steps)\n")
    zarr.open_array(store / "spectra/step", mode="r+")[1] = -1
    status, out, _ = run(capsys, "verify", str(store))
    assert status == 1
    assert "NOT whole" in out
    assert "fault: spectra/step has a gap" in out
    status, out, _ = run(capsys, "verify", "--json", str(store))
    assert status == 1
    assert json.loads(out)["whole"] is False


def test_report_says_what_it_wrote(capsys, store):
    status, out, _ = run(capsys, "report", str(store))
    assert status == 0
    assert str(store.parent / "report.html") in out


def test_help_and_verify_do_not_wait_for_torch(store):
    code = (
        "import sys; from spectra.cli import main; main(['verify', sys.argv[1]]); main(['--help']);"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(store)], check=True, capture_output=True)


def test_a_full_disk_is_one_line_and_status_1(capsys, store, tmp_path, monkeypatch):
    def full(path, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("spectra.report.page.write_result", full)
    status, _, err = run(capsys, "report", str(store), "--out", str(tmp_path / "r.html"))
    assert (status, err) == (1, f"spectra report: {tmp_path}/r.html: No space left on device\n")
