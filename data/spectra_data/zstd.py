"""Files compressed with zstd, decompressed as they are read, by the Arrow library."""

from io import RawIOBase
from pathlib import Path
from typing import Any

from spectra_data.documents import NotReadableError
from spectra_data.errors import first_line

MAGIC = b"\x28\xb5\x2f\xfd"
"""First bytes of every frame of zstd."""


class _Decompressed(RawIOBase):
    """A stream of decompressed bytes whose errors say what is wrong with the file."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as bytes are left."""
        try:
            read = self._stream.read(len(buffer))
        except OSError as error:  # damaged, truncated, or made with a window over 128 MB
            reason = first_line(error)
            raise NotReadableError(f"cannot be decompressed to its end ({reason})") from error
        buffer[: len(read)] = read
        return len(read)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        super().close()


def decompressed(file: Path) -> RawIOBase:
    """Open a file of zstd frames for reading.

    Raises
    ------
    NotReadableError
        While it is read, when it is damaged or ends early.
    """
    import pyarrow

    return _Decompressed(pyarrow.input_stream(str(file), compression="zstd"))
