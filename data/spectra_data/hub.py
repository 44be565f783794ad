"""Documents streamed from a hub through `datasets`, which is an extra.

Only what the run needs is downloaded: a stream is read once, in the hub's order, up to the token
limit, and its tokens stay on disk.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from spectra_data.documents import DocumentSource, Skips
from spectra_data.errors import InputError, first_line
from spectra_data.files import FileSource


@dataclass(frozen=True)
class HubSource(DocumentSource):
    """One split of a data set on a hub, or in a local folder that `datasets` understands."""

    dataset: str
    config: str | None = None
    split: str = "train"
    text_field: str = "text"

    expected_characters: ClassVar[int] = 1 << 62
    """More than any limit: a hub's data sets are rarely small."""

    @property
    def name(self) -> str:
        return f"hf:{self.dataset}" + (f":{self.config}" if self.config else "")

    def fingerprint(self) -> str:
        if Path(self.dataset).is_dir():
            version = FileSource(Path(self.dataset)).fingerprint()
        else:
            version = self._commit()
        parts = ("hub 1", self.dataset, self.config, self.split, self.text_field, version)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def documents(self, skips: Skips) -> Iterator[str]:
        records = iter(self._stream())
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except Exception as error:  # the network, or a shard's format
                raise InputError(f"reading {self.name} broke off: {first_line(error)}") from error
            text = record.get(self.text_field)
            if isinstance(text, str) and text.strip():
                yield text
            else:
                skips.add(self.name, f"record without a text field {self.text_field!r}")

    def _commit(self) -> str:
        """The commit that the name refers to now."""
        from huggingface_hub import HfApi

        try:
            return str(HfApi().dataset_info(self.dataset).sha)
        except Exception as error:  # the hub, the network, or the HTTP library beneath
            raise InputError(_unreachable(self.dataset, error)) from error

    def _stream(self) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise InputError(
                "streaming from a hub needs the extra `datasets`: "
                "pip install 'spectra-dynamics[datasets]'"
            ) from error
        local = Path(self.dataset).is_dir()
        try:
            return datasets.load_dataset(
                self.dataset,
                self.config,
                split=self.split,
                revision=None if local else self._commit(),
                streaming=True,
            )
        except InputError:
            raise
        except Exception as error:
            raise InputError(_unreachable(self.dataset, error)) from error


def _unreachable(dataset: str, error: Exception) -> str:
    return f"cannot open the data set {dataset!r} on the hub: {first_line(error)}"


def c4(text_field: str = "text") -> HubSource:
    """English C4, the corpus of the paper."""
    return HubSource("allenai/c4", "en", text_field=text_field)
