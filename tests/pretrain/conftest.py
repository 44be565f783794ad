"""What the tests of pretraining share: a corpus with a model, and a finished run."""

import json

import pytest

from spectra_pretrain.run import pretrain
from tests.pretrain.runs import TINY, options_of


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, shared) -> dict[str, str]:
    """A corpus of a few hundred paragraphs and a model of two layers."""
    folder = tmp_path_factory.mktemp("inputs")
    lines = (shared / "data/text/wikitext2-valid.txt").read_text().splitlines()
    with (folder / "corpus.jsonl").open("w") as f:
        f.writelines(json.dumps({"text": line}) + "\n" for line in lines[:400] if line.strip())
    (folder / "config.json").write_text(json.dumps(TINY))
    return {"model": str(folder / "config.json"), "data": str(folder / "corpus.jsonl")}


@pytest.fixture(scope="session")
def finished(inputs, tmp_path_factory):
    """A run that nothing interrupted: its folder and its summary."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, pretrain(options_of(inputs), out)
