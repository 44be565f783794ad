"""Texts in the columns of tables: CSV and TSV with a header, Arrow's IPC files and streams.

Rows are read one by one, so a file may have any size.
"""

import csv
import gzip
from collections.abc import Iterator
from io import BufferedReader, TextIOWrapper
from pathlib import Path

from spectra_data.documents import NotReadableError, Skips
from spectra_data.errors import first_line

DELIMITERS = (",", ";", "\t")
"""Delimiters of .csv files, the most usual first."""
LONGEST = 1 << 26
"""Characters in the longest line and cell: an unclosed quote would swallow the rest of a file."""
ARROW_MAGIC = b"ARROW1"
"""First bytes of Arrow's file format, which its stream format lacks."""


def csv_texts(
    stream: BufferedReader | gzip.GzipFile,
    name: str,
    text_field: str,
    skips: Skips,
    delimiters: tuple[str, ...] = DELIMITERS,
) -> Iterator[str]:
    """The cells of a column, one document per row.

    Parameters
    ----------
    stream
        Opened file, in UTF-8.
    name
        Name of the file under which rows are counted as skipped.
    text_field
        Name of the column in the first row.
    skips
        Counter of malformed rows.
    delimiters
        Characters that may separate cells; the first that yields such a column is used.

    Raises
    ------
    NotReadableError
        When there is no such column, or a line or a cell is too long.
    """
    csv.field_size_limit(LONGEST)
    text = TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    lines = _lines(text)
    first = next(lines, "")
    headers = {sign: next(csv.reader([first], delimiter=sign), []) for sign in delimiters}
    sign = next((s for s, header in headers.items() if text_field in header), None)
    if sign is None:
        widest = max(headers.values(), key=len)
        raise NotReadableError(missing(text_field, widest))
    header = headers[sign]
    column = header.index(text_field)
    rows = csv.reader(lines, delimiter=sign)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            where = f"line {rows.line_num + 1}: {first_line(error)}"
            raise NotReadableError(f"is damaged at {where} (is a quote not closed?)") from error
        if not row:
            continue
        if len(row) != len(header):
            skips.add(name, f"row without {len(header)} cells, the number in the header")
            continue
        yield _utf8(row[column], name, skips)


def arrow_texts(file: Path, text_field: str) -> Iterator[object]:
    """The values of a column of an Arrow file or stream, in its order.

    Raises
    ------
    NotReadableError
        When it is damaged, or has no such column.
    """
    import pyarrow
    import pyarrow.ipc

    with file.open("rb") as f:
        whole = f.read(len(ARROW_MAGIC)) == ARROW_MAGIC
    try:
        with pyarrow.memory_map(str(file)) as source:
            reader = (pyarrow.ipc.open_file if whole else pyarrow.ipc.open_stream)(source)
            columns = reader.schema.names
            if text_field not in columns:
                raise NotReadableError(missing(text_field, columns))
            batches = (
                (reader.get_batch(i) for i in range(reader.num_record_batches)) if whole else reader
            )
            for batch in batches:
                yield from batch.column(columns.index(text_field)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise NotReadableError(f"is not Arrow, or damaged: {first_line(error)}") from error


def missing(text_field: str, columns: list[str]) -> str:
    """Message about a table without the column that should hold the text."""
    return f"has no column {text_field!r}, only {', '.join(columns)}: set --text-field"


def _lines(text: TextIOWrapper) -> Iterator[str]:
    """The lines of a text, none longer than `LONGEST`."""
    while line := text.readline(LONGEST):
        if len(line) == LONGEST and line[-1] not in "\r\n":
            raise NotReadableError(f"has a line of over {LONGEST} characters")
        yield line


def _utf8(text: str, name: str, skips: Skips) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        skips.add(name, "row that is not UTF-8 (its bad bytes replaced)")
        return text.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")
    return text
