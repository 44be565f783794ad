"""Documents from local files: text, JSON lines (C4's format), JSON, CSV, TSV, parquet, Arrow.

All but parquet and Arrow may be compressed with gzip or zstd. A text file is one document; so is
each line of JSON lines, each element of a JSON array and each row of a table. Malformed lines are
counted and skipped, so one bad line in a shard of C4 costs only that line. A file that is not text
at all is an error if the user named it, and is counted if it is in a folder that the user named.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from spectra_data.documents import NotReadableError, Skips
from spectra_data.errors import InputError
from spectra_data.pointers import POINTER, WHAT, is_pointer
from spectra_data.saved import data_files, require_one_split
from spectra_data.tables import arrow_texts, csv_texts, missing
from spectra_data.zstd import MAGIC, decompressed

SNIFFED_BYTES = 1 << 16
COMPRESSIONS = (".gz", ".zst")


@dataclass(frozen=True)
class FileSource:
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
            digest.update(file.relative_to(self.path.parent).as_posix().encode())
            if _reader(file) in (_read_csv, _read_tsv):  # earlier versions took them for text
                digest.update(b" by column")
            with file.open("rb") as f:
                digest.update(hashlib.file_digest(f, "sha256").digest())
        return digest.hexdigest()

    def documents(self, skips: Skips) -> Iterator[str]:
        empty = True
        for file in self.files():
            try:
                for document in read_file(file, self.text_field, skips):
                    empty = False
                    yield document
            except NotReadableError as error:
                if file == self.path:
                    raise InputError(f"{file} {error}") from error
                skips.add(file.name, str(error))
        if empty:
            reasons = "; ".join(skips.lines()[:3])
            raise InputError(
                f"{self.path} holds no documents" + (f" (left out: {reasons})" if reasons else "")
            )


def read_file(file: Path, text_field: str, skips: Skips) -> Iterator[str]:
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
        for document in _reader(file)(file, text_field, skips):
            if not document.strip():
                skips.add(file.name, "empty document")
            elif _is_unicode(document):
                yield document
            else:
                skips.add(file.name, "document with half a surrogate pair (replaced by ?)")
                yield document.encode("utf-8", errors="replace").decode()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise NotReadableError(f"cannot be decompressed to its end ({error})") from error


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


def _reader(file: Path) -> Callable[[Path, str, Skips], Iterator[str]]:
    suffixes = [s for s in file.suffixes if s not in COMPRESSIONS]
    return READERS.get(suffixes[-1], _read_text) if suffixes else _read_text


def _open(file: Path) -> BufferedReader | gzip.GzipFile:
    """Open plain or decompressed, by the first bytes rather than by the name."""
    with file.open("rb") as f:
        head = f.read(len(MAGIC))
    if head == MAGIC:
        return BufferedReader(decompressed(file))
    return gzip.open(file, "rb") if head.startswith(b"\x1f\x8b") else file.open("rb")


def _require_text(file: Path) -> None:
    with _open(file) as f:
        head = f.read(SNIFFED_BYTES)
    if b"\0" in head:
        raise NotReadableError(f"is not text: a zero byte at offset {head.index(0)}")
    invalid = head.decode("utf-8", errors="replace").count("�") - head.count("�".encode())
    if invalid > len(head) / 10:
        raise NotReadableError(f"is not UTF-8 text: {invalid} invalid bytes in the first 64 kB")


def _read_text(file: Path, text_field: str, skips: Skips) -> Iterator[str]:
    _require_text(file)
    with _open(file) as f:
        raw = f.read()
    try:
        yield raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        for line in raw.splitlines():
            if not _is_utf8(line):
                skips.add(file.name, "line that is not UTF-8 (its bad bytes replaced)")
        yield raw.decode("utf-8-sig", errors="replace")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read_json_lines(file: Path, text_field: str, skips: Skips) -> Iterator[str]:
    _require_text(file)
    with _open(file) as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):  # bad JSON, bad UTF-8, endless brackets
                skips.add(file.name, "line that is not JSON")
                continue
            yield from _text_of(record, text_field, file, skips)


def _read_json(file: Path, text_field: str, skips: Skips) -> Iterator[str]:
    """An array of records if the file begins with ``[``, else JSON lines, as in C4."""
    _require_text(file)
    with _open(file) as f:
        array = f.read(SNIFFED_BYTES).lstrip().startswith(b"[")
    if not array:
        yield from _read_json_lines(file, text_field, skips)
        return
    with _open(file) as f:
        try:
            records = json.load(f)
        except ValueError as error:
            raise NotReadableError(f"is not JSON: {error}") from error
        except RecursionError as error:
            raise NotReadableError("is not usable JSON: it is nested too deeply") from error
    for record in records:
        yield from _text_of(record, text_field, file, skips)


def _text_of(record: object, text_field: str, file: Path, skips: Skips) -> Iterator[str]:
    if isinstance(record, str):
        yield record
    elif isinstance(record, dict) and isinstance(record.get(text_field), str):
        yield record[text_field]
    else:
        skips.add(file.name, f"record without a text field {text_field!r}")


def _read_parquet(file: Path, text_field: str, skips: Skips) -> Iterator[str]:
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
        batches = parquet.iter_batches(columns=[text_field])
        while True:
            try:
                values = next(batches).column(0).to_pylist()
            except StopIteration:
                return
            except (pyarrow.ArrowException, OSError) as error:
                raise NotReadableError(f"is damaged: {error}") from error
            for value in values:
                yield from _text_of({text_field: value}, text_field, file, skips)


def _read_arrow(file: Path, text_field: str, skips: Skips) -> Iterator[str]:
    for value in arrow_texts(file, text_field):
        yield from _text_of({text_field: value}, text_field, file, skips)


def _read_csv(file: Path, text_field: str, skips: Skips) -> Iterator[str]:
    _require_text(file)
    with _open(file) as stream:
        yield from csv_texts(stream, file.name, text_field, skips)


def _read_tsv(file: Path, text_field: str, skips: Skips) -> Iterator[str]:
    _require_text(file)
    with _open(file) as stream:
        yield from csv_texts(stream, file.name, text_field, skips, delimiters=("\t",))


READERS: dict[str, Callable[[Path, str, Skips], Iterator[str]]] = {
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
}
"""How the files of a suffix are read; all others are text."""
