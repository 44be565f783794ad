"""The four import packages, beside a user's own files and without an installation."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

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


def test_a_source_distribution_holds_every_file_that_is_tracked(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a checkout")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    for name in tracked:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / "tree" / name)
    build = "import setuptools.build_meta as b; b.build_sdist('..')"
    done = python("-c", build, cwd=tmp_path / "tree")
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        held = {name.partition("/")[2] for name in packed.getnames()}
    assert tracked - held == {".ci/run", ".gitignore"}
