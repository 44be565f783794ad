"""transformers' inner interfaces are used in one place, with releases that were tried alone."""

import re
from pathlib import Path

import pytest
import transformers
from transformers import AutoModelForCausalLM

import spectra
from spectra.checkpoint import expected
from spectra.cli import main
from spectra.compression.compress import compress
from spectra.matrices import find_matrices
from spectra.transformers_internals import BELOW, LOWEST, UNTRIED, is_tried, require_tried
from spectra_data.errors import InputError
from tests.small import small_llama, small_model
from tests.spectra.checkpoints import saved

FOLDERS = ("spectra", "data", "pretrain", "dashboard")
PACKAGES = [Path(spectra.__file__).parents[1] / name for name in FOLDERS]
AT_HOME = {"transformers_internals.py", "quantizer.py"}
MAJOR, MINOR = map(int, BELOW.split("."))
OTHERS = ["4.57.6", BELOW, f"{BELOW}.0.dev0", f"{MAJOR + 1}.0.0rc1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dense checkpoint `m`, and a compressed one `c`."""
    folder = tmp_path_factory.mktemp("made")
    saved(folder / "m")
    scan = spectra.scan(str(folder / "m"), folder / "scan.zarr")
    compress(str(folder / "m"), spectra.allocate(scan, err=0.55), folder / "c")
    return folder


@pytest.fixture(params=OTHERS)
def other(request, monkeypatch):
    """Another release of transformers."""
    monkeypatch.delenv(UNTRIED, raising=False)
    monkeypatch.setattr(transformers, "__version__", request.param)
    expected._expected.cache_clear()
    yield request.param
    expected._expected.cache_clear()


@pytest.mark.parametrize(
    "version", [LOWEST, f"{LOWEST}.7", f"{MAJOR}.{MINOR - 1}.0", f"{MAJOR}.{MINOR - 1}.3"]
)
def test_releases_between_the_bounds_are_used_with_all_their_patches(monkeypatch, version):
    monkeypatch.setattr(transformers, "__version__", version)
    assert is_tried()
    require_tried()


def test_another_release_is_refused_in_a_line_where_its_internals_are_used(
    made, tmp_path, capsys, other
):
    experts = small_model("mixtral")
    uses = {
        "load": lambda: AutoModelForCausalLM.from_pretrained(made / "c"),
        "scan": lambda: spectra.scan(str(made / "m"), tmp_path / "scan.zarr"),
        "experts": lambda: find_matrices(experts),
    }
    for use in uses.values():
        with pytest.raises(InputError, match=re.escape(f"transformers {other} is not")) as refused:
            use()
        message = str(refused.value)
        assert f"pip install 'transformers>={LOWEST},<{BELOW}'" in message
        assert "\n" not in message
    assert main(["scan", str(made / "m"), "--out", str(tmp_path / "s.zarr")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_another_release_disturbs_nothing_else(made, store, other):
    assert len(find_matrices(small_llama())[0]) == 14
    assert spectra.open(store)["spectra"].weight.notnull().any()
    AutoModelForCausalLM.from_pretrained(made / "m")


def test_a_user_may_try_another_release(made, tmp_path, monkeypatch, other):
    monkeypatch.setenv(UNTRIED, "1")
    AutoModelForCausalLM.from_pretrained(made / "c")
    spectra.scan(str(made / "m"), tmp_path / "scan.zarr")
    assert find_matrices(small_model("mixtral"))


def test_internals_are_used_in_one_place():
    inner = re.compile(
        r"from transformers\.(?!utils import logging)|import transformers\.|_on_load_|_hf_|"
        r"\._from_config|tied_weights|initialize_weights|\.is_transposed|\.is_concatenated"
    )
    used = {
        f"{path.name}:{number}: {line.strip()}"
        for package in PACKAGES
        for path in package.rglob("*.py")
        if path.name not in AT_HOME
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if inner.search(line)
    }
    assert used == set()
