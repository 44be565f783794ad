"""What the pages show runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spectra.cli import COMMANDS
from tests.forked import Forked

ROOT = Path(__file__).parent.parent


def examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def run_in(folder, example):
    os.chdir(folder)
    exec(example, {})


def test_the_library_example_runs_as_it_stands(tmp_path):
    (example,) = examples("README.md")
    ran = Forked(run_in, tmp_path, example)
    said, errors = ran.communicate()
    assert ran.returncode == 0, errors
    assert "standard error at most 0.015625" in said
    assert (tmp_path / "runs/example.html").stat().st_size > 1e6


def test_the_store_page_reads_a_store_without_this_package(store, tmp_path):
    (example,) = examples("docs/store.md")
    example = example.replace("runs/demo/spectra.zarr", str(store))
    code = (
        f"{example}\nimport sys\nassert not any(m.split('.')[0] == 'torch' for m in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme(command):
    assert f"| `spectra {command}" in (ROOT / "README.md").read_text()


def test_every_link_leads_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
