"""The command: help, one-line errors, exit statuses."""

import errno
import json
import os
import re
import subprocess
import sys

import pytest
import zarr

from spectra.cli import COMMANDS, main
from spectra.experiments.registry import EXPERIMENTS


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
        (["verify"], "an argument is missing"),
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
    assert str(store.parent / "run-report.html") in out


HEAVY = {"torch", "transformers", "zarr", "xarray", "pandas", "scipy", "plotly", "dash", "peft"}
AFTER_EACH = """
import json, sys
from spectra.cli import main

heavy, found = set(json.loads(sys.argv[1])), {}
for arguments in json.loads(sys.argv[2]):
    try:
        status = main(arguments)
    except SystemExit as stop:  # --help
        status = stop.code
    found[" ".join(arguments)] = [status, sorted(heavy & set(sys.modules))]
print(json.dumps(found))
"""


def test_help_and_wrong_options_wait_for_no_library(store):
    helps = [[], ["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)]
    helps += [["experiment", name, "--help"] for name in EXPERIMENTS]
    wrong = [["nonsense"], *([command, "--nonsense"] for command in COMMANDS)]
    wrong += [["experiment", "table1", "--contexts", "512"], ["pretrain", "--steps", "many"]]
    verify = ["verify", str(store)]
    asked = [json.dumps(sorted(HEAVY)), json.dumps([*helps, *wrong, verify])]
    ran = subprocess.run(
        [sys.executable, "-c", AFTER_EACH, *asked], check=True, capture_output=True, text=True
    )
    found = json.loads(ran.stdout.splitlines()[-1])
    light = {name: after for name, after in found.items() if name != " ".join(verify)}
    assert {name: imported for name, (_, imported) in light.items() if imported} == {}
    assert {light[" ".join(arguments)][0] for arguments in helps[1:]} == {0}
    assert {light[" ".join(arguments)][0] for arguments in wrong} == {2}
    assert found[" ".join(verify)] == [0, ["zarr"]]


def test_a_full_disk_is_one_line_and_status_1(capsys, store, tmp_path, monkeypatch):
    def full(path, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("spectra.report.page.write_result", full)
    status, _, err = run(capsys, "report", str(store), "--out", str(tmp_path / "r.html"))
    assert (status, err) == (1, f"spectra report: {tmp_path}/r.html: No space left on device\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scan", "m"], "--out is missing: store to write"),
        (["verify"], "an argument is missing: store to check"),
        (["export"], "an argument is missing: rank map"),
    ],
)
def test_what_is_missing_is_said(capsys, arguments, said):
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert err.startswith(f"spectra {arguments[0]}: {said}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [MemoryError("all of it"), RuntimeError("CUDA out of memory. X")])
def test_too_little_memory_is_one_line(capsys, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("spectra.commands.verify.main", fail)
    status, _, err = run(capsys, "verify", "store.zarr")
    assert status == 1
    assert err.startswith("spectra verify: out of memory: ")
    assert err.count("\n") == 1


def test_other_errors_of_the_program_keep_their_traceback(capsys, monkeypatch):
    def fail(*_):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("spectra.commands.verify.main", fail)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run(capsys, "verify", "store.zarr")


def test_a_terminal_shows_control_characters_and_does_not_obey_them(capsys):
    status, _, err = run(capsys, "verify", "a\x1b[2Jb\x07\ud800.zarr")
    assert status == 2
    assert r"a\x1b[2Jb\x07\ud800.zarr" in err
    assert "\x1b" not in err


def test_a_name_with_a_nul_is_refused(capsys):
    assert run(capsys, "verify", "a\0b") == (
        2,
        "",
        "spectra: an argument holds a NUL character, which no name can hold\n",
    )


@pytest.mark.parametrize(("typed", "meant"), [("alocate", "allocate"), ("pretrian", "pretrain")])
def test_a_mistyped_command_is_told_the_nearest(capsys, typed, meant):
    status, _, err = run(capsys, typed)
    assert (status, err) == (2, f"spectra: no command {typed!r}; did you mean {meant}?\n")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["scan", "m", "--output", "x.zarr"], "--output; did you mean --out?"),
        (["prune", "m", "--sparcity=0.5"], "--sparcity; did you mean --sparsity?"),
        (
            ["compress", "m", "--seqlen", "8", "--out", "o"],
            "--seqlen; did you mean --seq-len?",
        ),
        (["allocate", "s.zarr", "--eror", "0.5"], "--eror; did you mean --err?"),
        (["pretrain", "--stepps", "3"], "--stepps; did you mean --steps?"),
        (["pretrain", "--resume", "--no-dryrun"], "--no-dryrun; did you mean --no-dry-run?"),
        (["finetune", "m", "--learning_rat", "1"], "--learning_rat; did you mean --learning-rate?"),
        (
            ["experiment", "table1", "--eval-windows", "3"],
            "--eval-windows; did you mean --windows?",
        ),
        (["dashboard", "--hots", "::"], "--hots; did you mean --host?"),
        (["verify", "s.zarr", "-j"], "-j"),
    ],
)
def test_a_misspelt_option_is_told_the_nearest(capsys, arguments, meant):
    status, _, err = run(capsys, *arguments)
    more = f" (see `spectra {arguments[0]} --help`)"
    assert (status, err) == (2, f"spectra {arguments[0]}: there is no option {meant}{more}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["dashboard", "s3://b/run.zarr"],
            "the dashboard shows folders on this machine, not s3://",
        ),
        (
            ["report", "s.zarr", "--out", "s3://b/r.html"],
            "s3://b/r.html is an address: name a path",
        ),
        (["metrics", "s.zarr", "--out=gs://b/m.csv"], "gs://b/m.csv is an address: name a path"),
        (
            ["compress", "m", "--budget", "0.8", "--out", "s3://b/c"],
            "s3://b/c is an address",
        ),
        (["export", "hf://m.json", "--format", "csv"], "hf://m.json is an address"),
        (["pretrain", "--out", "s3://b/run"], "s3://b/run is an address"),
    ],
)
def test_an_address_is_not_made_a_folder(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert message in err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["allocate", "s", "--err", "half"], "--err is a share, e.g. 0.5 or 50%, not 'half'"),
        (["allocate", "s", "--err=5O%"], "--err is a share, e.g. 0.5 or 50%, not '5O%'"),
        (["allocate", "s", "--lrc-factor", "x"], "--lrc-factor is a share, e.g. 0.5 or 50%"),
        (["allocate", "s", "--method", "welor"], "--method is one of welore, welore-grid, uniform"),
        (
            ["compress", "m", "--out", "o", "--budget", "80 %%"],
            "--budget is a share, e.g. 0.5 or 50%",
        ),
        (["compress", "m", "--out", "o", "--align", "1.5"], "--align is a whole number, not '1.5'"),
        (
            ["compress", "m", "--out", "o", "--method", "x"],
            "--method is one of svd, asvd, whiten, fisher",
        ),
        (["prune", "m", "--out", "o", "--sparsity", "most"], "--sparsity is a share"),
        (["evaluate", "m", "--contexts", "512", "2k"], "--contexts is a whole number, not '2k'"),
        (["evaluate", "m", "--windows", "many"], "--windows is a whole number, not 'many'"),
        (["metrics", "s", "--bootstrap", "x"], "--bootstrap is a whole number, not 'x'"),
        (["path", "s", "--spacing", "fine"], "--spacing is a share"),
        (["pretrain", "--steps", "many"], "--steps is a whole number, not 'many'"),
        (["pretrain", "--learning_rate", "fast"], "--learning-rate is a number, not 'fast'"),
        (["pretrain", "--record-overhead", "low"], "--record-overhead is a share"),
        (["experiment", "table1", "--errs", "10%", "y"], "--errs is a share, e.g. 0.5 or 50%, not"),
    ],
)
def test_a_value_of_another_kind_is_told_what_it_must_be(capsys, arguments, message):
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_shares_are_fractions_or_percent(recorded_store, tmp_path, capsys):
    reports = []
    for share in ("0.35", "35%"):
        given = ["allocate", str(recorded_store), "--err", share, "--lrc-factor", "50%", "--json"]
        status, out, _ = run(capsys, *given)
        assert status == 0
        reports.append(json.loads(out))
    assert reports[0] == reports[1]
    assert reports[0]["err_asked"] == 0.35
    for option, share in (("--budget", "120%"), ("--err", "-1%"), ("--err", "nan%")):
        status, _, err = run(capsys, "allocate", str(recorded_store), option, share)
        assert status == 2
        assert "a number from 0 to 1" in err


@pytest.mark.parametrize(
    ("command", "shares"),
    [
        ("allocate", "err budget threshold lrc-factor"),
        ("compress", "budget shrinkage"),
        ("path", "spacing"),
        ("prune", "sparsity"),
        ("pretrain", "warmup min-lr-ratio validation-fraction record-overhead"),
        ("finetune", "warmup min-lr-ratio validation-fraction distill-weight record-overhead"),
    ],
)
def test_every_share_is_called_one_in_the_help(capsys, command, shares):
    out = run(capsys, command, "--help")[1]
    for share in shares.split():
        assert re.search(rf"--{share} (\{{None\}}\|)?SHARE\b", out), share
