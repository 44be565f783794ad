"""A checkpoint's address is resolved once, at the edge."""

from collections import Counter

import pytest
import transformers

import spectra
from spectra.calibration.outliers import outliers_on_text
from spectra.cli import main
from spectra.models import adapter, source
from spectra.models.source import Source
from spectra_data.errors import InputError
from tests.smollm import FILE, FOLDER, smollm
from tests.spectra.checkpoints import saved


@pytest.fixture
def counts(monkeypatch, tmp_path):
    """How often an address is resolved, an adapter looked for, a configuration loaded."""
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "cache"))
    found = Counter()

    def counted(owner, name, what, count=lambda *arguments, **named: True):
        original = getattr(owner, name)

        def call(*arguments, **named):
            found[what] += bool(count(*arguments, **named))
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, call)

    counted(source, "one_address", "address")
    counted(source, "adapter_of", "adapter")
    counted(transformers.AutoConfig, "from_pretrained", "configuration")
    counted(transformers.AutoTokenizer, "from_pretrained", "tokenizer")
    counted(source, "open_checkpoint", "checkpoint")
    counted(source, "_only_gguf", "format")
    return found


ONCE = {"address": 1, "adapter": 1, "configuration": 1, "checkpoint": 1, "format": 1}
TEXT = ["--windows", "2", "--seq-len", "16"]


@pytest.mark.parametrize(
    ("command", "more"),
    [
        (["compress", "{m}", "--budget", "0.8", "--align", "1", *TEXT, "--out", "{out}"], {}),
        (["compress", "{m}", "--map", "{map}", "--out", "{out}"], {}),
        (["prune", "{m}", "--sparsity", "0.5", *TEXT, "--out", "{out}"], {}),
        (["evaluate", "{m}", "--data", "{text}", "--windows", "2", "--seq-len", "16"],
         {"tokenizer": 1}),
    ],
    ids=["budget", "map", "prune", "evaluate"],
)  # fmt: skip
def test_a_command_resolves_its_checkpoint_once(stories, tmp_path, counts, command, more):
    places = {"m": stories["checkpoint"], "text": stories["text"], "map": tmp_path / "map.json",
              "out": tmp_path / "out"}  # fmt: skip
    if "{map}" in command:
        scan = spectra.scan(places["m"], tmp_path / "scan.zarr")
        spectra.allocate(scan, method="uniform", err=0.6).save(places["map"])
        counts.clear()
    assert main([part.format(**places) for part in command]) == 0
    assert counts == ONCE | more


@pytest.fixture
def stories(shared):
    folder = shared / "data/checkpoints/stories260K"
    return {"checkpoint": str(folder), "text": str(shared / "data/text/wikitext2-valid.txt")}


def test_of_an_adapters_folder_all_but_the_adapter_is_its_bases(tmp_path):
    saved(tmp_path / "base")
    base = Source(str(tmp_path / "base"))
    (tmp_path / "adapter").mkdir()
    adapter.save_changed(tmp_path / "adapter", base.address, base.checkpoint.identity, {})
    found = Source(str(tmp_path / "adapter"))
    assert found.adapter is not None
    assert found.place == base.place
    assert found.arguments == base.arguments
    assert found.config.to_dict() == base.config.to_dict()


def test_what_is_no_checkpoint_says_so_when_it_is_asked_for(tmp_path):
    with pytest.raises(InputError, match="no checkpoint at"):
        _ = Source(str(tmp_path / "nowhere/else")).checkpoint


@pytest.mark.slow
def test_outliers_of_a_gguf_file_are_counted_with_its_own_tokenizer(shared):
    smollm()
    text = str(shared / "data/text/wikitext2-valid.txt")
    shares = outliers_on_text(str(FOLDER / FILE), text, windows=1, length=16)
    assert len(shares) == 30
    assert all(0 <= share <= 1 for share in shares.values())
