"""Tokenizers, token files, and the held-out part."""

import copy
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectra_data.errors import InputError
from spectra_data.files import FileSource
from spectra_data.hub import HubSource
from spectra_data.pydocs import TOTAL_BYTES, PydocsSource
from spectra_data.tokenizer import (
    CHARACTERS_PER_MERGE,
    SMALLEST_VOCABULARY,
    TRAINING_CHARACTERS,
    FittedVocabulary,
    end_of_document,
    expected_characters,
    load_tokenizer,
    resolve_tokenizer,
    train_tokenizer,
)
from spectra_data.tokens import PASSAGE_CHARACTERS, open_tokens, prepare_tokens, split_document

WORDS = ["gradient", "weight", "singular", "value", "rank", "naïve", "σ"]


def corpus(tmp_path, documents=200, name="a.jsonl", seed=0):
    draw = np.random.default_rng(seed)
    path = tmp_path / name
    with path.open("w") as f:
        for _ in range(documents):
            text = " ".join(draw.choice(WORDS, size=60))
            f.write(json.dumps({"text": text}) + "\n")
    return FileSource(path)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(WORDS)] * 50, 300)


@given(st.text())
def test_a_trained_tokenizer_gives_every_text_back(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_a_vocabulary_smaller_than_the_bytes_is_refused():
    with pytest.raises(InputError, match=f"at least {SMALLEST_VOCABULARY}"):
        train_tokenizer(["text"], 100)


def test_a_trained_tokenizer_is_cached_by_content(tmp_path, cache):
    first = resolve_tokenizer("train", corpus(tmp_path), 300)
    count = len(list((cache / "tokenizers").iterdir()))
    again = resolve_tokenizer("train", corpus(tmp_path, name="a.jsonl"), 300)
    assert again.get_vocab() == first.get_vocab()
    assert len(list((cache / "tokenizers").iterdir())) == count
    resolve_tokenizer("train", corpus(tmp_path, seed=1), 300)
    assert len(list((cache / "tokenizers").iterdir())) == count + 1


@given(st.integers(0, 10**12), st.integers(1, 200_000), st.integers(0, 200_000))
def test_a_fitted_vocabulary_is_one_that_the_text_carries(characters, own, balanced):
    size = FittedVocabulary(own, balanced).size(characters)
    merges = size - SMALLEST_VOCABULARY
    assert 0 <= merges <= characters // CHARACTERS_PER_MERGE
    assert size <= max(own, SMALLEST_VOCABULARY)
    carries_own = SMALLEST_VOCABULARY + characters // CHARACTERS_PER_MERGE >= own
    assert size == max(own, SMALLEST_VOCABULARY) or not carries_own
    assert carries_own or size <= max(balanced, SMALLEST_VOCABULARY)


def test_the_tokens_that_are_used_count_as_the_text():
    assert FittedVocabulary(32_000, 32_000).size(10**9) == 32_000
    few = FittedVocabulary(32_000, 32_000, max_tokens=1_000_000)
    assert few.size(10**9) == FittedVocabulary(32_000, 32_000).size(4_000_000) < 3_000


def test_the_tokens_of_a_fitted_vocabulary_occur_often_enough_to_be_learnt(shared):
    text = (shared / "data/text/wikitext2-valid.txt").read_text()
    fitted = train_tokenizer([text], FittedVocabulary(32_000, 32_000).size(len(text)))
    own = train_tokenizer([text], 32_000)

    def rare(tokenizer) -> float:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        merged = np.bincount(ids, minlength=len(tokenizer))[SMALLEST_VOCABULARY:]
        return float(np.mean(merged < 50))

    assert rare(fitted) < 0.15
    assert rare(own) > 0.9


def test_a_fitted_tokenizer_is_made_once_by_reading_the_text_once(tmp_path, cache, monkeypatch):
    source = corpus(tmp_path, documents=100, seed=5)
    reads = []
    original = FileSource.pieces
    monkeypatch.setattr(
        FileSource, "pieces", lambda self, skips: reads.append(1) or original(self, skips)
    )
    fitted = resolve_tokenizer("train", source, FittedVocabulary(300, 300))
    assert len(fitted) < 300
    again = resolve_tokenizer("train", source, FittedVocabulary(300, 300))
    assert again.get_vocab() == fitted.get_vocab()
    assert len(reads) == 1
    by_number = resolve_tokenizer("train", source, len(fitted))
    assert by_number.get_vocab() == fitted.get_vocab()


def test_the_length_of_a_text_is_estimated_without_making_or_fetching_it(tmp_path, cache):
    source = corpus(tmp_path, seed=6)
    text = [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert expected_characters(source) == sum(map(len, text))
    assert expected_characters(PydocsSource()) == TOTAL_BYTES
    assert expected_characters(HubSource("nobody/nothing")) == TRAINING_CHARACTERS


def test_tokenizers_load_from_a_folder_and_from_a_file(shared):
    folder = shared / "data/checkpoints/stories260K"
    assert len(load_tokenizer(str(folder))) == 512
    single = load_tokenizer(str(folder / "tokenizer.json"))
    assert end_of_document(single) == end_of_document(load_tokenizer(str(folder)))


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_a_wrong_tokenizer_says_what_to_give(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match="cannot load the tokenizer"):
        load_tokenizer(str(path))


def test_tokens_are_the_documents_with_an_end_after_each(tmp_path, tokenizer):
    source = corpus(tmp_path, documents=300)
    files = prepare_tokens(source, tokenizer, validation_fraction=0.1)
    texts = [
        text
        for part in (files.train, files.validation)
        for text in tokenizer.decode(part).split("</s>")
        if text
    ]
    with source.path.open() as lines:
        assert sorted(texts) == sorted(json.loads(line)["text"] for line in lines)
    manifest = files.manifest
    assert manifest.documents == 300
    assert manifest.train_tokens == files.train.size
    assert files.train.dtype == np.uint16


def test_the_held_out_part_shares_no_text_with_training(tmp_path, tokenizer):
    source = corpus(tmp_path, documents=300)
    with source.path.open("a") as f:  # every document twice
        f.write(source.path.read_text())
    files = prepare_tokens(source, tokenizer, validation_fraction=0.1)
    train = set(tokenizer.decode(files.train).split("</s>"))
    validation = set(tokenizer.decode(files.validation).split("</s>"))
    assert len(validation) > 10
    assert train & validation == {""}


def test_adding_documents_moves_none_between_the_parts(tmp_path, tokenizer):
    fewer = prepare_tokens(corpus(tmp_path, 100), tokenizer, validation_fraction=0.2)
    more = prepare_tokens(corpus(tmp_path, 200), tokenizer, validation_fraction=0.2)
    assert np.array_equal(more.validation[: fewer.validation.size], fewer.validation)


def test_a_corpus_of_one_short_text_still_holds_out_its_end(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text(" ".join(WORDS * 50))
    whole = prepare_tokens(FileSource(tmp_path / "a.txt"), tokenizer, validation_fraction=1e-9)
    files = prepare_tokens(FileSource(tmp_path / "a.txt"), tokenizer, validation_fraction=0.1)
    joined = np.concatenate([files.train, files.validation])
    assert files.validation.size == joined.size // 10
    assert np.array_equal(joined, np.concatenate([whole.train, whole.validation]))


def test_a_corpus_is_tokenised_once(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("spectra_data.tokens.CHARACTERS_AT_ONCE", 10_000)
    said = []
    source = corpus(tmp_path, documents=1000, seed=5)
    first = prepare_tokens(source, tokenizer, progress=said.append)
    assert said
    said.clear()
    again = prepare_tokens(source, tokenizer, progress=said.append)
    assert not said
    assert again == first == open_tokens(first.manifest.key)


@pytest.mark.parametrize("limit", [1000, 20_000])
def test_reading_stops_near_the_limit(tmp_path, tokenizer, limit):
    source = corpus(tmp_path, documents=3000)
    files = prepare_tokens(source, tokenizer, limit=limit)
    assert limit <= files.train.size + files.validation.size < limit + 2 * PASSAGE_CHARACTERS


def test_what_a_tokenizer_was_saved_with_does_not_cut_the_corpus(tmp_path, tokenizer):
    source = corpus(tmp_path)
    whole = prepare_tokens(source, tokenizer)
    cutting = copy.deepcopy(tokenizer)
    cutting.backend_tokenizer.enable_truncation(max_length=16)
    cutting.backend_tokenizer.enable_padding(length=64)
    assert np.array_equal(prepare_tokens(source, cutting).train, whole.train)


def test_another_end_token_gives_other_token_files(tmp_path, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<s>"
    source = corpus(tmp_path)
    assert prepare_tokens(source, other).train[-1] == tokenizer.bos_token_id
    assert prepare_tokens(source, tokenizer).train[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("damage", ["train.bin", "manifest.json"])
def test_damaged_token_files_are_made_anew(tmp_path, tokenizer, damage):
    source = corpus(tmp_path, seed=7)
    files = prepare_tokens(source, tokenizer)
    expected = np.array(files.train)
    (files.folder / damage).write_bytes(b"{")
    assert open_tokens(files.manifest.key) is None
    assert np.array_equal(prepare_tokens(source, tokenizer).train, expected)


def test_large_vocabularies_are_stored_in_32_bits(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "__len__", lambda self: 70_000)
    files = prepare_tokens(corpus(tmp_path, seed=9), tokenizer)
    assert files.train.dtype == np.uint32


@given(st.text(alphabet="ab \n", max_size=300))
def test_passages_joined_are_the_document_however_it_is_read(text):
    document = text * (PASSAGE_CHARACTERS // 50)
    passages = list(split_document([document]))
    assert "".join(passages) == document
    assert all(0 < len(passage) <= PASSAGE_CHARACTERS for passage in passages)
    cuts = [0, *sorted(len(document) * k // 7 for k in (1, 2, 5)), len(document)]
    pieces = [document[first:end] for first, end in itertools.pairwise(cuts)]
    assert list(split_document(pieces)) == passages
