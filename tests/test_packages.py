"""The four import packages, beside a user's own files and without an installation."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT, ROOT / "data", ROOT / "pretrain", ROOT / "dashboard")
PACKAGES = ("spectra", "spectra_data", "spectra_pretrain", "spectra_dashboard")


def python(*arguments, cwd, path=()):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_files_of_a_user_with_the_names_of_our_folders_disturb_nothing(tmp_path):
    for name in ("data", "pretrain", "dashboard", "tests"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a user wrote this')\n")
    script = tmp_path / "train.py"
    script.write_text("import spectra\nspectra.open, spectra.InputError, spectra.record\n")
    done = python(str(script), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    code = """
from spectra.cli import main
for command in ("pretrain", "finetune", "dashboard", "verify"):
    try:
        main([command, "--help"])
    except SystemExit as end:
        assert not end.code, command
"""
    done = python("-c", code, cwd=tmp_path, path=[tmp_path])
    assert done.returncode == 0, done.stderr


def test_a_checkout_that_is_not_installed_works_with_its_folders_on_the_path(tmp_path):
    code = f"import sys, {', '.join(PACKAGES)}\n"
    code += f"print(*(sys.modules[name].__file__ for name in {PACKAGES}), sep='\\n')"
    # -S leaves out what is installed as an editable; what we depend on comes by its folder
    done = python("-S", "-c", code, cwd=tmp_path, path=(*FOLDERS, sysconfig.get_path("purelib")))
    assert done.returncode == 0, done.stderr
    places = [Path(line).parent for line in done.stdout.splitlines()]
    assert places == [folder / name for folder, name in zip(FOLDERS, PACKAGES, strict=True)]
