"""Streaming from a hub, with the code that the real one is read with."""

import json
import os
import subprocess
import sys

import pytest

from spectra_data.documents import Skips
from spectra_data.sources import open_source
from tests.data.hub_server import hub, lines

SHARDS = {
    "README.md": b"---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n"
    b"    path: en/c4-train.*.json.gz\n---\n",
    "en/c4-train.00000-of-00002.json.gz": lines([f"first {i}" for i in range(50)] + [" "]),
    "en/c4-train.00001-of-00002.json.gz": lines([f"second {i}" for i in range(50)]),
}
READ = """
import itertools, json, sys
from spectra_data.documents import Skips
from spectra_data.errors import InputError
from spectra_data.sources import open_source
found = []
for spec, count in json.loads(sys.argv[1]):
    try:
        source, skips = open_source(spec), Skips()
        fingerprint = source.fingerprint()
        documents = list(itertools.islice(source.documents(skips), count))
        found.append([fingerprint, documents, skips.lines()])
    except InputError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def read(endpoint, home, *wanted):
    """In a process of its own: the hub's address is fixed when its library is imported."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    result = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(wanted)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return json.loads(result.stdout)


def test_c4_is_streamed_shard_by_shard(tmp_path):
    with hub("allenai/c4", SHARDS) as (endpoint, requests):
        few, missing = read(endpoint, tmp_path / "home", ("c4", 10), ("hf:nobody/nothing", 1))
        assert few[1] == [f"first {i}" for i in range(10)]
        assert not any("00001-of-00002" in r for r in requests)  # no more than is needed
        (all_of_it,) = read(endpoint, tmp_path / "home", ("hf:allenai/c4:en", 1000))
    assert all_of_it[0] == few[0]
    assert all_of_it[1] == [f"{s} {i}" for s in ("first", "second") for i in range(50)]
    assert all_of_it[2] == ["1 x hf:allenai/c4:en: record without a text field 'text'"]
    assert missing.startswith("cannot open the data set 'nobody/nothing' on the hub: ")


def test_a_hub_that_cannot_be_reached_says_so(tmp_path):
    (message,) = read("http://127.0.0.1:9", tmp_path / "home", ("c4", 1))
    assert message.startswith("cannot open the data set 'allenai/c4' on the hub: ")


def test_a_local_folder_is_read_through_datasets_too(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    source = open_source(f"hf:{tmp_path}")
    before = source.fingerprint()
    assert list(source.documents(Skips())) == ["one", "two"]
    (tmp_path / "a.jsonl").write_text('{"text": "three"}\n')
    assert source.fingerprint() != before


def test_names_become_sources(tmp_path):
    assert open_source("c4").name == "hf:allenai/c4:en"
    assert open_source("hf:a/b").name == "hf:a/b"
    assert open_source("pydocs").name == "pydocs"
    with pytest.raises(ValueError, match="needs a data set's name"):
        open_source("hf:")
