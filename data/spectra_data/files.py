"""Documents from local files: text, JSON lines (C4's format), JSON, CSV, TSV, parquet, Arrow.

All but parquet and Arrow may be compressed with gzip or zstd. A text file is one document; so is
each line of JSON lines, each element of a JSON array and each row of a table. Text is read a piece
at a time, so that the beginning of a large file costs no more than that of a small one. Malformed
lines are counted and skipped, so one bad line in a shard of C4 costs only that line. A file that is
not text at all is an error if the user named it, and is counted if it is in a folder that the user
named.
"""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any

from spectra_data.documents import DocumentSource, NotReadableError, Piece, Skips
from spectra_data.errors import InputError
from spectra_data.pointers import POINTER, WHAT, is_pointer
from spectra_data.saved import data_files, require_one_split
from spectra_data.tables import arrow_texts, csv_texts, missing
from spectra_data.zstd import MAGIC, decompressed

SNIFFED_BYTES = 1 << 16
PIECE_BYTES = 1 << 20
"""Bytes of a text file that are read at once."""
LARGEST_RECORD = 1 << 26
"""Bytes of the longest line of JSON lines."""
LARGEST_ARRAY = 1 << 28
"""Bytes of the largest file that is one JSON array, which is read whole."""
ROWS = 1024
"""Rows of a parquet file that are read at once."""
LARGEST_RATIO = 200
"""Bytes that a compressed byte may unpack to: 2 to 20 in text, 1000 in a file of zeros."""
COMPRESSIONS = (".gz", ".zst")


@dataclass(frozen=True)
class FileSource(DocumentSource):
    """The documents of one file, or of every file below a folder in the order of their paths."""

    path: Path
    text_field: str = "text"

    def __post_init__(self) -> None:
        if not _exists(self.path):
            raise InputError(
                f"no such file or folder: {self.path} (a data source is `pydocs`, `c4`, `hf:NAME`, "
                "or a path to text, jsonl, json, csv, tsv, parquet, arrow or a folder of these)"
            )
        if not (self.path.is_file() or self.path.is_dir()):
            raise InputError(f"{self.path} is neither a file nor a folder")
        if not self.files():
            raise InputError(f"the folder {self.path} holds no files")

    @property
    def name(self) -> str:
        return str(self.path)

    def files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        require_one_split(self.path)
        found = sorted(
            p
            for p in self.path.rglob("*")
            if p.is_file()
            and not any(part.startswith(".") for part in p.relative_to(self.path).parts)
        )
        return data_files(found)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"files 1 {self.text_field}".encode())
        for file in self.files():
            digest.update(os.fsencode(file.relative_to(self.path.parent).as_posix()))
            if _reader(file) in (_read_csv, _read_tsv):  # earlier versions read them as text
                digest.update(b" by column")
            with file.open("rb") as f:
                digest.update(hashlib.file_digest(f, "sha256").digest())
        return digest.hexdigest()

    def pieces(self, skips: Skips) -> Iterator[Piece]:
        empty = True
        for file in self.files():
            ends = True
            try:
                for piece in read_file(file, self.text_field, skips):
                    empty, ends = False, piece.ends
                    yield piece
            except NotReadableError as error:
                if file == self.path:
                    raise InputError(f"{file} {error}") from error
                skips.add(file.name, str(error))
                if not ends:
                    yield Piece("")
        if empty:
            reasons = "; ".join(skips.lines()[:3])
            raise InputError(
                f"{self.path} holds no documents" + (f" (left out: {reasons})" if reasons else "")
            )


def read_file(file: Path, text_field: str, skips: Skips) -> Iterator[Piece]:
    """Yield the documents of one file, in order, without the empty ones.

    Raises
    ------
    NotReadableError
        When the file is not of the kind that its name says, or holds bytes that are not text.
    """
    with file.open("rb") as f:
        if is_pointer(f.read(len(POINTER))):
            raise NotReadableError(WHAT)
    try:
        yield from _without_empty(_reader(file)(file, text_field, skips), file, skips)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise NotReadableError(f"cannot be decompressed to its end ({error})") from error


def _without_empty(pieces: Iterator[Piece], file: Path, skips: Skips) -> Iterator[Piece]:
    """The pieces of documents that are more than white space, as valid Unicode."""
    blank: list[Piece] = []
    begun = False
    for piece in pieces:
        if not _is_unicode(piece.text):
            skips.add(file.name, "document with half a surrogate pair (replaced by ?)")
            piece = Piece(piece.text.encode("utf-8", errors="replace").decode(), piece.ends)
        if begun or piece.text.strip():
            yield from blank
            yield piece
            blank, begun = [], not piece.ends
        elif piece.ends:
            skips.add(file.name, "empty document")
            blank = []
        else:
            blank.append(piece)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for the file system
        return False


def _is_unicode(document: str) -> bool:
    """Whether a text can be encoded: JSON may escape one half of a surrogate pair alone."""
    try:
        document.encode()
    except UnicodeEncodeError:
        return False
    return True


def _reader(file: Path) -> "Reader":
    suffixes = [s for s in file.suffixes if s not in COMPRESSIONS]
    return READERS.get(suffixes[-1], _read_text) if suffixes else _read_text


def _open(file: Path) -> BufferedReader:
    """Open a file, decompressed if its first bytes, not its name, mark it as an archive."""
    with file.open("rb") as f:
        head = f.read(len(MAGIC))
    if (packed := _archive(file, head)) is None:
        return file.open("rb")
    most = max(LARGEST_RECORD, LARGEST_RATIO * file.stat().st_size)
    return BufferedReader(_Unpacked(packed, most))


def _archive(file: Path, head: bytes) -> RawIOBase | gzip.GzipFile | None:
    if head == MAGIC:
        return decompressed(file)
    return gzip.open(file, "rb") if head.startswith(b"\x1f\x8b") else None


class _Unpacked(RawIOBase):
    """Decompressed bytes, no more of them than a text could have.

    An archive of zeros would fill memory or take hours.
    """

    def __init__(self, stream: RawIOBase | gzip.GzipFile, most: int) -> None:
        self._stream, self._rest = stream, most

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as bytes are left."""
        count = self._stream.readinto(buffer) or 0
        self._rest -= count
        if self._rest < 0:
            raise NotReadableError(
                f"unpacks to more than {LARGEST_RATIO} times its size, which is not text: unpack "
                "it and look at it"
            )
        return count

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        super().close()


def _lines(file: BufferedReader) -> Iterator[bytes]:
    while line := file.readline(LARGEST_RECORD + 1):
        if len(line) > LARGEST_RECORD:
            raise NotReadableError(f"has a line of more than {LARGEST_RECORD:,} bytes")
        yield line


def _require_text(file: Path) -> None:
    with _open(file) as f:
        head = f.read(SNIFFED_BYTES)
    if b"\0" in head:
        raise NotReadableError(f"is not text: a zero byte at offset {head.index(0)}")
    invalid = head.decode("utf-8", errors="replace").count("�") - head.count("�".encode())
    if invalid > len(head) / 10:
        raise NotReadableError(f"is not UTF-8 text: {invalid} invalid bytes in the first 64 kB")


def _read_text(file: Path, text_field: str, skips: Skips) -> Iterator[Piece]:
    _require_text(file)
    with _open(file) as f:
        encoding, rest = "utf-8-sig", b""
        while block := f.read(PIECE_BYTES):
            end = _last_cut(rest + block)
            content, rest = (rest + block)[:end], (rest + block)[end:]
            yield Piece(_decoded(content, encoding, file, skips), ends=False)
            encoding = "utf-8"
        yield Piece(_decoded(rest, encoding, file, skips))


def _last_cut(content: bytes) -> int:
    """Where a text is best cut: after a lone line feed, else before a blank or a character.

    Tokenizers that split text at white space make the same tokens of both sides as of the whole.
    """
    half, at = len(content) // 2, len(content) - 1
    while (at := content.rfind(b"\n", half, at)) > 0:
        if not (content[at - 1 : at].isspace() or content[at + 1 : at + 2].isspace()):
            return at + 1
    if (blank := content.rfind(b" ", half)) > 0:
        return blank
    begun = next((n for n in range(1, 5) if content[-n : -n + 1 or None][0] & 0xC0 != 0x80), 0)
    return len(content) - begun if begun and content[-begun] & 0x80 else len(content)


def _decoded(content: bytes, encoding: str, file: Path, skips: Skips) -> str:
    """The text, with bad bytes replaced and their lines counted."""
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        for line in content.splitlines():
            if not _is_utf8(line):
                skips.add(file.name, "line that is not UTF-8 (its bad bytes replaced)")
        return content.decode(encoding, errors="replace")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read_json_lines(file: Path, text_field: str, skips: Skips) -> Iterator[Piece]:
    _require_text(file)
    with _open(file) as f:
        for line in _lines(f):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):  # bad JSON, bad UTF-8, endless brackets
                skips.add(file.name, "line that is not JSON")
                continue
            yield from _text_of(record, text_field, file, skips)


def _read_json(file: Path, text_field: str, skips: Skips) -> Iterator[Piece]:
    """An array of records if the file begins with ``[``, else JSON lines, as in C4."""
    _require_text(file)
    with _open(file) as f:
        head = f.read(SNIFFED_BYTES)
        if not head.lstrip().startswith(b"["):
            yield from _read_json_lines(file, text_field, skips)
            return
        content = head + f.read(LARGEST_ARRAY)
    if len(content) > LARGEST_ARRAY:
        raise NotReadableError(
            f"is a JSON array of more than {LARGEST_ARRAY:,} bytes: write one record per line "
            "(.jsonl)"
        )
    try:
        records = json.loads(content)
    except ValueError as error:
        raise NotReadableError(f"is not JSON: {error}") from error
    except RecursionError as error:
        raise NotReadableError("is not usable JSON: it is nested too deeply") from error
    for record in records:
        yield from _text_of(record, text_field, file, skips)


def _text_of(record: object, text_field: str, file: Path, skips: Skips) -> Iterator[Piece]:
    if isinstance(record, str):
        yield Piece(record)
    elif isinstance(record, dict) and isinstance(record.get(text_field), str):
        yield Piece(record[text_field])
    else:
        skips.add(file.name, f"record without a text field {text_field!r}")


def _read_parquet(file: Path, text_field: str, skips: Skips) -> Iterator[Piece]:
    import pyarrow
    import pyarrow.parquet

    try:
        parquet = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowException as error:
        raise NotReadableError(f"is not parquet: {error}") from error
    with parquet:
        columns = parquet.schema_arrow.names
        if text_field not in columns:
            raise NotReadableError(missing(text_field, columns))
        batches = parquet.iter_batches(batch_size=ROWS, columns=[text_field])
        while True:
            try:
                values = next(batches).column(0).to_pylist()
            except StopIteration:
                return
            except (pyarrow.ArrowException, OSError) as error:
                raise NotReadableError(f"is damaged: {error}") from error
            for value in values:
                yield from _text_of({text_field: value}, text_field, file, skips)


def _read_arrow(file: Path, text_field: str, skips: Skips) -> Iterator[Piece]:
    for value in arrow_texts(file, text_field):
        yield from _text_of({text_field: value}, text_field, file, skips)


def _read_csv(file: Path, text_field: str, skips: Skips) -> Iterator[Piece]:
    _require_text(file)
    with _open(file) as stream:
        yield from map(Piece, csv_texts(stream, file.name, text_field, skips))


def _read_tsv(file: Path, text_field: str, skips: Skips) -> Iterator[Piece]:
    _require_text(file)
    with _open(file) as stream:
        texts = csv_texts(stream, file.name, text_field, skips, delimiters=("\t",))
        yield from map(Piece, texts)


Reader = Callable[[Path, str, Skips], Iterator[Piece]]
READERS: dict[str, Reader] = {
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
}
"""Functions that read files, by suffix; all others are read as text."""
