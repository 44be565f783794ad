"""A zarr store that records checksums of what is written through it, before readers rely on it."""

import asyncio
import contextlib
import warnings
from collections.abc import Collection, Iterator, Mapping

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.sync import sync
from zarr.storage import WrapperStore

from spectra.store.checksums import (
    ABSENT,
    ATTRIBUTE,
    FILES,
    FOLDER,
    DamagedRecordError,
    FileRecord,
    RowRecord,
    digest,
    row_arrays,
    row_key,
    row_of,
)
from spectra.store.durable import is_partial
from spectra.store.metadata import digests, keys, published, read, read_node, write


class CheckedStore(WrapperStore[Store]):
    """Writes through, and keeps the checksums.

    Readers do not rely yet on what is written outside a transaction: chunks of a row that is not
    announced, or of a group that is not published. Everything else is written in a transaction.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.written: dict[str, str] = {}
        """Checksums of what was written outside transactions."""
        self._staged: dict[str, Buffer | None] | None = None
        self._record: FileRecord | None = None

    @property
    def record(self) -> FileRecord:
        """Checksums of the files that are not part of a snapshot."""
        if self._record is None:
            content = read(self._store, FILES)
            if content is not None:
                with contextlib.suppress(DamagedRecordError):
                    self._record = FileRecord.unpack(content)
        if self._record is None:
            self._record = self._record_anew()
        return self._record

    def _record_anew(self) -> FileRecord:
        """Record the files found now, for a store that is older than checksums, or lost them."""
        root = read_node(self._store) or {}
        if ATTRIBUTE in root.get("attributes", {}):
            warnings.warn(
                f"{FILES} in {self._store} is damaged: it is rebuilt from the files found now",
                RuntimeWarning,
                stacklevel=2,
            )
        arrays = row_arrays(published(root))
        listed = keys(self._store)
        rows = {key: row for key in listed if (row := row_of(key, arrays)) is not None}
        others = [k for k in listed if k not in rows and not k.startswith(FOLDER)]
        found = digests(self._store, [key for key in others if not is_partial(key)])
        files = {key: [checksum] for key, checksum in found.items()}
        without = {row for row in rows.values() if row_key(row) not in set(listed)}
        return FileRecord(files, first_row=max(without, default=-1) + 1)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        if self._staged is not None and key in self._staged:
            return self._staged[key]  # whole: no array that is staged has shards
        return await self._store.get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        if self._staged is not None:
            self._staged[key] = value
            return
        self.written[key] = await asyncio.to_thread(digest, value.as_buffer_like())
        await self._store.set(key, value)

    async def delete(self, key: str) -> None:
        if self._staged is not None:
            self._staged[key] = None
            return
        self.written.pop(key, None)
        await self._store.delete(key)

    def adopt(self, prefix: str) -> None:
        """Treat what another process wrote, outside transactions, as written by this one."""
        listed = [key for key in keys(self._store, prefix) if not is_partial(key)]
        self.written |= digests(self._store, listed)

    def record_row(self, row: int, step: int, arrays: Collection[str]) -> None:
        """Record the checksums of a row that is written, ahead of its step."""
        files = {key: found for key, found in self.written.items() if row_of(key, arrays) == row}
        write(self._store, row_key(row), RowRecord(row, step, files).pack())
        self.written.clear()

    @contextlib.contextmanager
    def transaction(self, others: Mapping[str, str] | None = None) -> Iterator[None]:
        """Hold writes back until the block ends; make them in order once they are recorded.

        Parameters
        ----------
        others
            Checksums of existing files that readers rely on after the block, or `ABSENT` for those
            that they no longer rely on.
        """
        self._staged = {}
        try:
            yield
            staged = self._staged
        finally:
            self._staged = None
        contents = {k: None if v is None else v.as_buffer_like() for k, v in staged.items()}
        after = {key: digest(content) for key, content in contents.items()} | dict(others or {})
        if after:
            self._make(staged, after)

    def _make(self, staged: Mapping[str, Buffer | None], after: Mapping[str, str]) -> None:
        before = {key: self.record.files.get(key, [ABSENT]) for key in after}
        either = {key: list(dict.fromkeys([*before[key], after[key]])) for key in after}
        self._write_record(self.record.files | either)
        for key, value in staged.items():
            sync(self._store.delete(key) if value is None else self._store.set(key, value))
        settled = self.record.files | {key: [checksum] for key, checksum in after.items()}
        settled = {key: found for key, found in settled.items() if found != [ABSENT]}
        if any(ABSENT in before[key] and key in settled for key in after):
            self._write_record(settled)  # else the loss of a new file would pass for a kill
        self._record = FileRecord(settled, self.record.first_row)

    def _write_record(self, files: dict[str, list[str]]) -> None:
        self._record = FileRecord(files, self.record.first_row)
        write(self._store, FILES, self._record.pack())
