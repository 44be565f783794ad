"""What is kept for the next run: checked before it is used, made again where it is damaged."""

import json
import subprocess
import sys

import numpy as np
import pytest

from spectra_data import cache, pydocs, tokens
from spectra_data.cache import cache_folder, new_folder
from spectra_data.documents import Skips
from spectra_data.errors import InputError
from spectra_data.files import FileSource
from spectra_data.integrity import sealed, unsealed
from spectra_data.partial import partial_file, partial_folder, remove_leftovers
from spectra_data.pydocs import PydocsSource
from spectra_data.tokenizer import resolve_tokenizer
from spectra_data.tokens import open_tokens, prepare_tokens


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache, in a process that has checked nothing."""
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tokens, "_checked", set())
    monkeypatch.setattr(pydocs, "_checked", set())
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path):
    draw = np.random.default_rng(0)
    file = tmp_path / "corpus.jsonl"
    words = ["gradient", "weight", "rank", "value"]
    texts = (" ".join(draw.choice(words, size=60)) for _ in range(100))
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return FileSource(file)


def changed(content: bytes) -> bytes:
    """Every byte changed, the length kept."""
    return bytes(byte ^ 1 for byte in content)


@pytest.mark.parametrize("damaged", ["train.bin", "validation.bin", "manifest.json"])
@pytest.mark.parametrize("damage", [changed, lambda content: content[:-1], lambda content: b""])
def test_damaged_tokens_are_made_again_with_a_line(own_cache, source, capsys, damaged, damage):
    tokenizer = resolve_tokenizer("train", source, 300)
    made = prepare_tokens(source, tokenizer)
    train = np.array(made.train)
    file = made.folder / damaged
    file.write_bytes(damage(file.read_bytes()))
    again = prepare_tokens(source, tokenizer)
    assert f"{made.folder} is damaged (" in capsys.readouterr().err
    np.testing.assert_array_equal(again.train, train)
    assert again.manifest == made.manifest


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": ">u2"},
        {"train_tokens": 7},
        {"key": "0" * 16},
        {"sha256": {}},
        {"documents": 3},
    ],
)
def test_a_manifest_that_was_changed_is_not_used(own_cache, source, change):
    made = prepare_tokens(source, resolve_tokenizer("train", source, 300))
    file = made.folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert open_tokens(made.manifest.key) is None
    assert not made.folder.exists()


def test_tokens_under_another_key_are_not_used(own_cache, source):
    made = prepare_tokens(source, resolve_tokenizer("train", source, 300))
    made.folder.rename(made.folder.with_name("0123456789abcdef"))
    assert open_tokens("0123456789abcdef") is None


def test_tokens_of_a_version_without_a_seal_are_used(own_cache, source):
    made = prepare_tokens(source, resolve_tokenizer("train", source, 300))
    file = made.folder / "manifest.json"
    file.write_text(json.dumps(unsealed(file.read_bytes())))
    assert open_tokens(made.manifest.key) == made


@pytest.mark.parametrize("damage", [changed, lambda content: content[:100], None])
def test_a_damaged_tokenizer_is_trained_again_with_a_line(own_cache, source, capsys, damage):
    first = resolve_tokenizer("train", source, 300)
    (file,) = own_cache.glob("tokenizers/*/tokenizer.json")
    content = file.read_bytes()
    file.unlink()
    if damage is not None:
        file.write_bytes(damage(content))
    assert resolve_tokenizer("train", source, 300).get_vocab() == first.get_vocab()
    assert "is damaged (tokenizer.json is " in capsys.readouterr().err
    assert file.read_bytes() == content


def test_damaged_documents_are_collected_again_with_a_line(own_cache, monkeypatch, capsys):
    manifest = pydocs.Manifest(1, "3", {}, {}, 1, 4, pydocs._sha256(["text"]))
    monkeypatch.setattr(pydocs, "collect", lambda: (["text"], manifest))
    PydocsSource().fingerprint()
    (file,) = own_cache.glob("pydocs/*/documents.jsonl")
    file.write_text('"tent"\n')
    pydocs._checked.clear()
    assert list(PydocsSource().documents(Skips())) == ["text"]
    assert "is damaged (documents.jsonl is not what was written)" in capsys.readouterr().err


def test_what_is_sealed_is_what_was_written():
    content = {"a": 0.1, "b": [1, None, "σ"], "c": {"d": True}}
    text = sealed(content)
    assert unsealed(text) == content
    with pytest.raises(ValueError, match="not what was written"):
        unsealed(text.replace(b"0.1", b"0.3"))


def hold(target, ending: str) -> subprocess.Popen[str]:
    """Another process that makes a file or a folder, and waits."""
    code = f"""
import sys, time
from pathlib import Path
from spectra_data.partial import partial_file, partial_folder
with partial_{ending}(Path({str(target)!r})):
    print("made", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "made\n"
    return process


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_living_process_makes_stays_and_what_a_killed_one_left_goes(tmp_path, kind):
    process = hold(tmp_path / "result", kind)
    try:
        remove_leftovers(tmp_path)
        assert len(list(tmp_path.glob(".result.*.partial"))) == 1
    finally:
        process.kill()
        process.wait()
    remove_leftovers(tmp_path, "other")
    assert len(list(tmp_path.iterdir())) == 1
    remove_leftovers(tmp_path, "result")
    assert not list(tmp_path.iterdir())


def test_the_next_fill_of_the_cache_removes_what_a_killed_one_left(own_cache):
    (own_cache / "tokens").mkdir(parents=True)
    process = hold(own_cache / "tokens/one", "folder")
    process.kill()
    process.wait()
    with new_folder(cache_folder("tokens", "two")) as folder:
        (folder / "a").write_text("a")
    assert [p.name for p in (own_cache / "tokens").iterdir()] == ["two"]


@pytest.mark.parametrize("making", [partial_file, partial_folder])
def test_an_unfinished_file_or_folder_goes_with_its_block(tmp_path, making):
    with pytest.raises(KeyError), making(tmp_path / "result"):
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.fixture
def no_home(tmp_path, monkeypatch):
    """A home that nobody can write to: it is a file."""
    home = tmp_path / "home"
    home.write_text("")
    monkeypatch.delenv("SPECTRA_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(home))
    cache._temporary.cache_clear()
    yield home
    cache._temporary.cache_clear()


def test_without_a_home_results_are_kept_for_the_process_and_a_line_says_so(no_home, capsys):
    folder = cache_folder("tokens")
    with new_folder(folder / "a") as partial:
        (partial / "b").write_text("content")
    assert (cache_folder("tokens") / "a/b").read_text() == "content"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"cannot write to the cache {no_home}/.cache/spectra-dynamics" in said
    assert "set SPECTRA_CACHE" in said


def test_a_cache_that_was_named_and_cannot_be_made_is_refused(no_home, monkeypatch):
    monkeypatch.setenv("SPECTRA_CACHE", str(no_home / "cache"))
    with pytest.raises(InputError, match=r"cannot make the cache .*: set SPECTRA_CACHE"):
        cache_folder("tokens")
