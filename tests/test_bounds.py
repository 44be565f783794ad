"""The versions that pyproject.toml allows are those that the tests run with."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from spectra.transformers_internals import BELOW, LOWEST

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(*extras):
    """Requirements by name: the dependencies, and those of extras."""
    listed = [*PROJECT["dependencies"]]
    for extra in extras:
        listed += PROJECT["optional-dependencies"][extra]
    found = {canonicalize_name(r.name): r for r in map(Requirement, listed)}
    own = found.pop(PROJECT["name"], None)
    return found | (requirements(*own.extras) if own else {})


def pins(file):
    """Versions by name."""
    lines = (ROOT / file).read_text().splitlines()
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pinned}


def lower_bound(requirement):
    (found,) = [s.version for s in requirement.specifier if s.operator in (">=", "==")]
    return Version(found)


TESTED = requirements("test")
EVERY = TESTED | requirements("peers")


@pytest.mark.parametrize("name", sorted(TESTED.keys() - {"torch"}))
def test_the_lowest_versions_that_are_tested_are_the_bounds(name):
    assert pins("constraints-lowest.txt")[name] == lower_bound(TESTED[name])


def test_the_lowest_versions_are_tested_with_the_torch_that_is_installed():
    assert pins("constraints-lowest.txt")["torch"] == pins("constraints.txt")["torch"]


@pytest.mark.parametrize("name", sorted(EVERY))
def test_the_versions_that_are_installed_are_within_the_bounds(name):
    assert EVERY[name].specifier.contains(pins("constraints.txt")[name])


def test_the_bounds_of_transformers_are_the_releases_that_its_internals_were_tried_with():
    specifier = TESTED["transformers"].specifier
    assert {s.operator: Version(s.version) for s in specifier} == {
        ">=": Version(LOWEST), "<": Version(BELOW)
    }  # fmt: skip


def test_every_page_names_the_same_oldest_python():
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert f"Python {oldest} or newer" in (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    assert f"({oldest.replace('.', ', ')})" in makefile
    assert set(re.findall(r"Python (3\.\d+)", makefile)) == {oldest}
