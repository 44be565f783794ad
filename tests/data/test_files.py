"""Documents from files."""

import gzip
import hashlib
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectra_data import files
from spectra_data.documents import Skips, first_tokens
from spectra_data.errors import InputError
from spectra_data.files import FileSource, _last_cut
from spectra_data.tokenizer import load_tokenizer

RECORDS = [{"text": "first"}, {"text": "second\nline"}, {"text": "thïrd"}]
DOCUMENTS = [record["text"] for record in RECORDS]


def read(path, **options):
    skips = Skips()
    return list(FileSource(path, **options).documents(skips)), skips.lines()


def write_lines(path, records, opener=open):
    with opener(path, "wt", encoding="utf-8") as f:
        f.writelines(json.dumps(record) + "\n" for record in records)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson"])
def test_json_lines_give_a_document_a_line(tmp_path, name):
    assert read(write_lines(tmp_path / name, RECORDS)) == (DOCUMENTS, [])


@pytest.mark.parametrize("name", ["a.jsonl.gz", "c4-train.00000-of-01024.json.gz"])
def test_gzipped_json_lines_are_read_as_c4_has_them(tmp_path, name):
    assert read(write_lines(tmp_path / name, RECORDS, gzip.open)) == (DOCUMENTS, [])


def test_a_json_array_gives_a_document_an_element(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([*RECORDS, "bare"]))
    assert read(tmp_path / "a.json") == ([*DOCUMENTS, "bare"], [])


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("some\n\ntext")
    assert read(tmp_path / "a.txt") == (["some\n\ntext"], [])


def test_parquet_gives_a_document_a_row(tmp_path):
    table = pyarrow.table({"content": DOCUMENTS, "id": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", text_field="content") == (DOCUMENTS, [])
    with pytest.raises(InputError, match="no column 'text', only content, id"):
        read(tmp_path / "a.parquet")


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "z.txt").write_text("last")
    write_lines(tmp_path / "sub" / "b.jsonl", RECORDS[:1])
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / ".hidden").write_text("not read")
    assert read(tmp_path) == (["one", "first", "last"], [])


def test_malformed_lines_are_counted_and_passed_over(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "good"}\nnot json\n{"other": 1}\n\n{"text": 3}\n{"text": "  "}\n'
        b'\xff\xfe\n{"text": "also good"}\n'
    )
    documents, lines = read(path)
    assert documents == ["good", "also good"]
    assert lines == [
        "1 x a.jsonl: empty document",
        "2 x a.jsonl: line that is not JSON",
        "2 x a.jsonl: record without a text field 'text'",
    ]


def test_a_file_that_is_no_text_says_so(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"PNG\0\1\2")
    with pytest.raises(InputError, match=r"a\.txt is not text: a zero byte at offset 3"):
        read(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_bytes(bytes(range(128, 256)) * 10)
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read(tmp_path / "b.txt")


def test_a_binary_file_in_a_folder_is_listed_and_the_rest_is_read(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\0\1")
    (tmp_path / "b.txt").write_text("text")
    assert read(tmp_path) == (["text"], ["1 x a.bin: is not text: a zero byte at offset 0"])


def test_half_a_surrogate_pair_is_replaced_and_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "broken \\ud83d end"}\n')
    documents, lines = read(tmp_path / "a.jsonl")
    assert documents == ["broken ? end"]
    assert lines == ["1 x a.jsonl: document with half a surrogate pair (replaced by ?)"]


def test_a_damaged_parquet_says_so(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"{i} " * 50 for i in range(5000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[1000:3000] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.parquet is damaged"):
        read(path)


def test_a_truncated_gzip_says_so(tmp_path):
    path = write_lines(tmp_path / "a.jsonl.gz", RECORDS * 1000, gzip.open)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be decompressed to its end"):
        read(path)


@pytest.mark.parametrize("content", ["", "{}\n", "\n\n"])
def test_an_empty_corpus_says_so(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(InputError, match="holds no documents"):
        read(tmp_path / "a.jsonl")


def test_wrong_paths_say_what_a_source_can_be(tmp_path):
    with pytest.raises(InputError, match=r"no such file or folder: .*nowhere .*`pydocs`"):
        FileSource(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no files"):
        FileSource(tmp_path / "empty")


def test_the_fingerprint_follows_the_content(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = FileSource(path).fingerprint()
    assert FileSource(path).fingerprint() == before
    path.write_text("two")
    assert FileSource(path).fingerprint() != before


def test_long_texts_come_in_pieces_that_are_cut_where_tokens_end(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE_BYTES", 4000)
    text = "".join(f"line {i} of thïs text\n" + "\n" * (i % 3 == 0) for i in range(1000))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8-sig")
    pieces = list(FileSource(tmp_path / "a.txt").pieces(Skips()))
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert max(len(piece.text) for piece in pieces) < 8001
    for piece in pieces[:-1]:
        assert piece.text.endswith("text\n")


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("one two three", "one two"),
        ("one two\nthree", "one two\n"),
        ("one two\n\nthree", "one two\n\nthree"),
        ("onetwo", "onetwo"),
    ],
)
def test_a_text_is_cut_at_a_lone_line_feed_else_at_a_blank(text, cut):
    assert text.encode()[: _last_cut(text.encode())].decode() == cut


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_no_character_is_cut(missing):
    content = "漢字😀".encode()[:-missing]
    assert content[: _last_cut(content)].decode() == "漢字"


def test_a_beginning_costs_no_more_than_it_is_long(tmp_path):
    (tmp_path / "a.txt").write_text("word and word\n" * 500_000)
    pieces = FileSource(tmp_path / "a.txt").pieces(Skips())
    tokens = first_tokens((piece.text for piece in pieces), str.split, 100)
    assert len(tokens) >= 100
    assert len(next(pieces).text) < 2 * files.PIECE_BYTES  # the second of seven


@given(st.integers(0, 300), st.integers(1, 30))
def test_first_tokens_are_those_of_the_whole_text(words, width):
    texts = [f"{'x' * width}{i} " for i in range(words)]
    whole = "".join(texts).split()
    for wanted in (1, 5, 80):
        found = first_tokens(texts, str.split, wanted)
        assert found[:wanted] == whole[:wanted]
        assert len(found) >= min(wanted, len(whole))
    assert first_tokens(texts, str.split, None) == whole


def bomb(path, before=b"", after=b""):
    with gzip.open(path, "wb", compresslevel=1) as f:
        f.write(before)
        for _ in range(80):
            f.write(b"a" * 1_000_000)
        f.write(after)
    return path


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.json.gz"])
def test_an_archive_that_no_text_makes_is_refused(tmp_path, name):
    (tmp_path / "good.txt").write_text("good")
    path = bomb(tmp_path / name, b'[{"text": "' if ".json." in name else b"", b"")
    with pytest.raises(InputError, match=r"unpacks to more than 200 times|a line of more than"):
        read(path)
    documents, lines = read(tmp_path)
    assert documents[-1] == "good"
    assert len(lines) == 1


def test_a_text_of_white_space_alone_is_empty(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE_BYTES", 100)
    (tmp_path / "a.txt").write_text(" \n" * 1000)
    with pytest.raises(InputError, match="empty document"):
        read(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text(" \n" * 1000 + "word")
    assert read(tmp_path / "a.txt") == ([" \n" * 1000 + "word"], [])


def test_the_fingerprint_of_a_table_is_not_that_of_the_text_that_it_once_was(tmp_path):
    (tmp_path / "a.csv").write_text("text\none\n")
    known = hashlib.sha256(b"files 1 text" + b"a.csv")
    known.update(hashlib.sha256((tmp_path / "a.csv").read_bytes()).digest())
    assert FileSource(tmp_path / "a.csv").fingerprint() != known.hexdigest()
    (tmp_path / "a.csv").rename(tmp_path / "a.txt")
    known = hashlib.sha256(b"files 1 text" + b"a.txt")
    known.update(hashlib.sha256((tmp_path / "a.txt").read_bytes()).digest())
    assert FileSource(tmp_path / "a.txt").fingerprint() == known.hexdigest()


def test_a_name_that_is_not_utf_8_is_a_name(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    path.write_text("one", encoding="utf-8")
    assert len(FileSource(path).fingerprint()) == 64
    assert read(path) == (["one"], [])
    with pytest.raises(InputError, match="is not UTF-8, which safetensors and tokenizers need"):
        load_tokenizer(str(path))
