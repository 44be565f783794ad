"""Documents from tables, and from files that zstd compressed."""

import csv
import gzip
import json
import tracemalloc

import datasets
import pyarrow
import pyarrow.ipc
import pytest

from spectra_data.errors import InputError
from spectra_data.files import FileSource
from tests.data.test_files import DOCUMENTS, RECORDS, read, write_lines

TEXTS = ["first", 'with "quotes", a comma\nand two lines', "thïrd"]


def zstd_open(path, mode, encoding=None):
    stream = pyarrow.CompressedOutputStream(str(path), "zstd")
    return stream if encoding is None else _Text(stream)


class _Text:
    def __init__(self, stream):
        self._stream = stream

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stream.close()

    def writelines(self, lines):
        self._stream.write("".join(lines).encode())


def write_table(path, delimiter, opener=open, newline="\r\n"):
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter=delimiter, lineterminator=newline)
        rows.writerow(["id", "content"])
        rows.writerows(enumerate(TEXTS))
    return path


@pytest.mark.parametrize(
    ("name", "delimiter", "newline"),
    [("a.csv", ",", "\r\n"), ("a.csv", ";", "\n"), ("a.csv", "\t", "\r"), ("a.tsv", "\t", "\n")],
)
def test_csv_and_tsv_give_a_document_a_row(tmp_path, name, delimiter, newline):
    path = write_table(tmp_path / name, delimiter, newline=newline)
    assert read(path, text_field="content") == (TEXTS, [])


def test_a_gzipped_csv_is_read_and_a_byte_order_mark_is_no_part_of_a_column(tmp_path):
    path = write_table(tmp_path / "a.csv.gz", ",", gzip.open)
    assert read(path, text_field="content") == (TEXTS, [])
    (tmp_path / "b.csv").write_text("text\none\n", encoding="utf-8-sig")
    assert read(tmp_path / "b.csv") == (["one"], [])


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_table_without_the_column_names_those_that_it_has(tmp_path, name):
    path = write_table(tmp_path / name, "\t")
    with pytest.raises(
        InputError, match="has no column 'text', only id, content: set --text-field"
    ):
        read(path)


def test_malformed_rows_are_counted_and_the_others_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,n\ngood,1\nlacks\ntoo,many,cells\n\nb\xff\xfed,2\nalso good,3\n")
    documents, lines = read(path)
    assert documents == ["good", "b\ufffd\ufffdd", "also good"]
    assert lines == [
        "1 x a.csv: row that is not UTF-8 (its bad bytes replaced)",
        "2 x a.csv: row without 2 cells, the number in the header",
    ]


def test_a_quote_that_is_never_closed_does_not_swallow_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("spectra_data.tables.LONGEST", 10_000)
    path = tmp_path / "a.csv"
    path.write_text("text\ngood\n" + '"open\n' + "more\n" * 10_000, encoding="utf-8")
    with pytest.raises(InputError, match=r"is damaged at line \d+: .* \(is a quote not closed\?\)"):
        read(path)


def test_a_line_that_does_not_end_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("spectra_data.tables.LONGEST", 10_000)
    path = tmp_path / "a.csv"
    path.write_text("text\ngood\n" + "x" * 100_000 + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="has a line of over 10000 characters"):
        read(path)


def test_a_table_is_read_row_by_row(tmp_path):
    path = tmp_path / "a.csv"
    with path.open("w") as file:
        file.write("text\n")
        file.writelines("word " * 200 + "\n" for _ in range(5_000))
    # the least of three: what other threads of this process allocate is traced too
    peak = min(_peak_of_reading(path) for _ in range(3))
    assert peak < 2_000_000 < path.stat().st_size


def _peak_of_reading(path):
    documents = FileSource(path).documents(skips=None)
    next(documents)
    tracemalloc.start()
    assert sum(1 for _ in documents) == 4_999
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow_gives_a_document_a_row(tmp_path, kind):
    table = pyarrow.table({"content": [*DOCUMENTS, None], "id": [1, 2, 3, 4]})
    new = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
    with new(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    documents, lines = read(tmp_path / "a.arrow", text_field="content")
    assert documents == DOCUMENTS
    assert lines == ["1 x a.arrow: record without a text field 'content'"]
    with pytest.raises(InputError, match="no column 'text', only content, id: set --text-field"):
        read(tmp_path / "a.arrow")


@pytest.mark.parametrize("cut", [100, 0.5])
def test_a_damaged_arrow_file_says_so(tmp_path, cut):
    path = tmp_path / "a.arrow"
    table = pyarrow.table({"text": [f"{i} " * 50 for i in range(5000)]})
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    content = path.read_bytes()
    path.write_bytes(content[: cut if cut > 1 else int(cut * len(content))])
    with pytest.raises(InputError, match=r"a\.arrow is not Arrow, or damaged"):
        read(path)


def test_a_data_set_that_was_saved_to_disk_is_read_without_its_descriptions(tmp_path):
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict({"text": DOCUMENTS}).save_to_disk(folder, num_shards=2)
    assert read(folder) == (DOCUMENTS, [])
    (folder / "cache-0123.arrow").write_bytes(b"of a map that was tried out")
    assert read(folder) == (DOCUMENTS, [])
    (folder / "more.txt").write_text("put there by hand")
    assert read(folder) == ([*DOCUMENTS, "put there by hand"], [])
    (folder / "state.json").write_text("{}")
    with pytest.raises(InputError, match="is damaged: it lists no _data_files"):
        read(folder)


def test_of_a_data_set_with_several_splits_one_must_be_named(tmp_path):
    parts = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    with pytest.raises(InputError, match="holds the splits test, train of a data set: name the"):
        FileSource(tmp_path / "both")
    assert read(tmp_path / "both" / "train") == (["train"], [])
    datasets.DatasetDict(train=parts["train"]).save_to_disk(tmp_path / "one")
    assert read(tmp_path / "one") == (["train"], [])


@pytest.mark.parametrize("name", ["a.jsonl.zst", "c4-train.00000-of-01024.json.zst"])
def test_json_lines_that_zstd_compressed_are_read(tmp_path, name):
    assert read(write_lines(tmp_path / name, RECORDS, zstd_open)) == (DOCUMENTS, [])


def test_text_arrays_and_tables_that_zstd_compressed_are_read(tmp_path):
    contents = {"a.txt.zst": "some\n\ntext", "b.json.zst": json.dumps(RECORDS)}
    contents["c.csv.zst"] = "id,text\n1,cell\n"
    for name, content in contents.items():
        with zstd_open(tmp_path / name, "wb") as file:
            file.write(content.encode())
    assert read(tmp_path) == (["some\n\ntext", *DOCUMENTS, "cell"], [])


def test_frames_of_zstd_one_after_the_other_are_all_read(tmp_path):
    for name in "ab":
        write_lines(tmp_path / name, [{"text": name}] * 5000, zstd_open)
    both = (tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes()
    (tmp_path / "both.jsonl.zst").write_bytes(both)
    assert read(tmp_path / "both.jsonl.zst") == (["a"] * 5000 + ["b"] * 5000, [])


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "cut in its header"])
def test_a_damaged_file_of_zstd_says_so(tmp_path, damage):
    records = [{"text": f"{i * 7919 % 10007}"} for i in range(20_000)]
    path = write_lines(tmp_path / "a.jsonl.zst", records, zstd_open)
    content = bytearray(path.read_bytes())
    if damage == "overwritten":
        content[2000:2100] = bytes(100)
    path.write_bytes(content[:-100] if damage == "truncated" else content)
    if damage == "cut in its header":
        path.write_bytes(content[:6])
    with pytest.raises(InputError, match="cannot be decompressed to its end"):
        read(path)
