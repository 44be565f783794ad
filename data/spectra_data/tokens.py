"""A corpus as token files: written once, memory-mapped ever after.

``<cache>/tokens/<key>/`` holds ``train.bin`` and ``validation.bin`` (little-endian uint16, or
uint32 for vocabularies over 65 536) and ``manifest.json``. The key is a hash of corpus, tokenizer
and options, so a resumed run finds the very same tokens, and a changed corpus never passes for the
old one. The files' hashes in the manifest, and its own, are checked once in every process that uses
them (a billion tokens, 2 GB, take one to three seconds); damaged files are made again.

Validation is held out by content: documents are cut at paragraphs into passages of at most
`PASSAGE_CHARACTERS`, and a passage belongs to validation when the hash of its text says so. A text
that occurs twice is therefore on one side, and adding documents moves none of the old ones. If a
corpus is too small for a single validation passage, its last tokens are held out instead.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from spectra_data.cache import cache_folder, discard, new_folder
from spectra_data.documents import DocumentSource, Piece, Skips, texts_of
from spectra_data.errors import InputError
from spectra_data.hub import HubSource
from spectra_data.integrity import file_sha256, sealed, unsealed
from spectra_data.tokenizer import end_of_document, tokenizer_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT = 1
PASSAGE_CHARACTERS = 16_384
CHARACTERS_AT_ONCE = 4_000_000
PARTS = ("train", "validation")
DTYPES = ("<u2", "<u4")

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Manifest:
    """What token files were made from; a run keeps a copy of it."""

    format: int
    key: str
    source: str
    fingerprint: str
    tokenizer_sha256: str
    vocab_size: int
    dtype: str
    documents: int
    train_tokens: int
    validation_tokens: int
    sha256: dict[str, str]
    """Hashes of the token files."""
    skipped: list[str] = field(default_factory=list)
    corpus: dict[str, Any] = field(default_factory=dict)
    """The source's own manifest, if it has one."""


@dataclass(frozen=True)
class TokenFiles:
    """The tokens of a corpus, memory-mapped."""

    folder: Path
    manifest: Manifest

    @property
    def train(self) -> Tokens:
        return self._open("train", self.manifest.train_tokens)

    @property
    def validation(self) -> Tokens:
        return self._open("validation", self.manifest.validation_tokens)

    def _open(self, part: str, count: int) -> Tokens:
        dtype = np.dtype(self.manifest.dtype)
        if not count:
            return np.empty(0, dtype)
        return np.memmap(self.folder / f"{part}.bin", dtype=dtype, mode="r", shape=(count,))


def tokens_key(
    fingerprint: str,
    tokenizer: "PreTrainedTokenizerFast",
    validation_fraction: float,
    limit: int | None,
) -> str:
    """Name of the token files made from these inputs."""
    tokenization = [tokenizer_sha256(tokenizer), end_of_document(tokenizer)]
    parts = [FORMAT, fingerprint, *tokenization, validation_fraction, limit]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def open_tokens(key: str) -> TokenFiles | None:
    """The token files of that name; None if they do not exist.

    Damaged ones are removed, and a line says so.
    """
    folder = cache_folder("tokens", key)
    if not folder.exists():
        return None
    try:
        manifest = Manifest(**unsealed((folder / "manifest.json").read_bytes()))
        _require_whole(folder, key, manifest)
    except (OSError, ValueError, TypeError, KeyError) as error:
        discard(folder, error)
        return None
    return TokenFiles(folder, manifest)


_checked: set[tuple[Path, str, int, int]] = set()
"""Token files whose hash this process has checked: path, hash, size, time of the last change."""


def _require_whole(folder: Path, key: str, manifest: Manifest) -> None:
    """Raise a ValueError if the files differ from the manifest, or the manifest has another key."""
    if manifest.key != key:
        raise ValueError(f"its manifest belongs to the tokens {manifest.key}")
    if manifest.dtype not in DTYPES:
        raise ValueError(f"tokens are not stored as {manifest.dtype}")
    counts = (manifest.train_tokens, manifest.validation_tokens)
    for part, count in zip(PARTS, counts, strict=True):
        file, sha256 = folder / f"{part}.bin", manifest.sha256[part]
        about = file.stat()
        if about.st_size != count * np.dtype(manifest.dtype).itemsize:
            raise ValueError(f"{file.name} does not have the length of {count:,} tokens")
        known = (file, sha256, about.st_size, about.st_mtime_ns)
        if known not in _checked and file_sha256(file) != sha256:
            raise ValueError(f"{file.name} is not what was written")
        _checked.add(known)


def prepare_tokens(
    source: DocumentSource,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    validation_fraction: float = 0.02,
    limit: int | None = None,
    progress: Progress = lambda message: None,
) -> TokenFiles:
    """Tokenise a corpus, or open its cached tokens.

    Parameters
    ----------
    source
        The corpus.
    tokenizer
        Tokenizer for its documents; an end token is put after every document.
    validation_fraction
        Share of the text held out for validation.
    limit
        Stop after this many tokens; None reads the whole corpus.
    progress
        Called now and then with a few words about the progress.

    Raises
    ------
    InputError
        When the corpus is empty or cannot be read.
    """
    fingerprint = source.fingerprint()
    key = tokens_key(fingerprint, tokenizer, validation_fraction, limit)
    if found := open_tokens(key):
        return found
    with new_folder(cache_folder("tokens", key)) as folder:
        skips = Skips()
        writer = _TokenWriter(folder, tokenizer, validation_fraction, limit)
        documents = writer.write(source.pieces(skips), progress)
        train_tokens, validation_tokens = writer.close()
        if train_tokens + validation_tokens == 0:
            raise InputError(f"the corpus {source.name} is empty: it has no tokens")
        manifest = Manifest(
            format=FORMAT,
            key=key,
            source=source.name,
            fingerprint=fingerprint,
            tokenizer_sha256=tokenizer_sha256(tokenizer),
            vocab_size=len(tokenizer),
            dtype=writer.dtype.str,
            documents=documents,
            train_tokens=train_tokens,
            validation_tokens=validation_tokens,
            sha256={part: file_sha256(folder / f"{part}.bin") for part in PARTS},
            skipped=skips.lines(),
            corpus=_own_manifest(source),
        )
        (folder / "manifest.json").write_bytes(sealed(asdict(manifest)))
    found = open_tokens(key)
    assert found is not None
    return found


def default_limit(source: DocumentSource, tokens_needed: int) -> int | None:
    """Default limit of tokens: none (None), but for a stream what is needed."""
    return tokens_needed if isinstance(source, HubSource) else None


class Passage(NamedTuple):
    """A stretch of a document that is on one side of the split."""

    split: str
    """``train`` or ``validation``."""
    text: str
    ends: bool
    """Whether an end token follows: at the document's end, and before a passage elsewhere."""


class _TokenWriter:
    """Splits documents into passages, passages into tokens, tokens into the two files."""

    def __init__(
        self,
        folder: Path,
        tokenizer: "PreTrainedTokenizerFast",
        validation_fraction: float,
        limit: int | None,
    ) -> None:
        self.folder = folder
        self.encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.encoder.no_truncation()  # a tokenizer's saved settings must not cut the corpus
        self.encoder.no_padding()
        self.end = end_of_document(tokenizer)
        self.dtype = np.dtype(DTYPES[len(tokenizer) > 1 << 16])
        self.fraction = validation_fraction
        self.limit = limit
        self.counts = dict.fromkeys(PARTS, 0)
        self.files: dict[str, BinaryIO] = {p: (folder / f"{p}.bin").open("wb") for p in PARTS}

    def write(self, pieces: Iterator[Piece], progress: Progress) -> int:
        """Write every document up to the limit; returns their number."""
        seen = characters = 0
        batch: list[Passage] = []
        for texts in texts_of(pieces):
            seen += 1
            for passage in self._passages(texts):
                batch.append(passage)
                characters += len(passage.text)
                if characters >= self._characters_at_once():
                    self._write_passages(batch)
                    batch, characters = [], 0
                    progress(f"{sum(self.counts.values()):,} tokens of {seen:,} documents")
                    if self._remaining() <= 0:
                        return seen
        self._write_passages(batch)
        return seen

    def _remaining(self) -> float:
        """Tokens left before the limit."""
        return math.inf if self.limit is None else self.limit - sum(self.counts.values())

    def _characters_at_once(self) -> float:
        """Characters of a batch: few enough, at four a token, to meet the limit, not pass it."""
        return min(CHARACTERS_AT_ONCE, 4 * self._remaining())

    def close(self) -> tuple[int, int]:
        """Finish both files; returns their token counts."""
        for file in self.files.values():
            file.close()
        if self.counts["validation"] == 0 and self.fraction > 0:
            self._hold_out_last_tokens()
        return self.counts["train"], self.counts["validation"]

    def _passages(self, texts: Iterator[str]) -> Iterator["Passage"]:
        passages = ((self._split(text), text) for text in split_document(texts))
        last = next(passages, None)
        for following in passages:
            assert last is not None
            yield Passage(*last, ends=following[0] != last[0])
            last = following
        if last is not None:
            yield Passage(*last, ends=True)

    def _split(self, passage: str) -> str:
        number = int.from_bytes(hashlib.sha256(passage.encode()).digest()[:8], "big")
        return "validation" if number < self.fraction * 2**64 else "train"

    def _write_passages(self, batch: list["Passage"]) -> None:
        texts = [passage.text for passage in batch]
        encodings = self.encoder.encode_batch(texts, add_special_tokens=False)
        for passage, encoding in zip(batch, encodings, strict=True):
            ids = [*encoding.ids, self.end] if passage.ends else encoding.ids
            self.files[passage.split].write(np.asarray(ids, self.dtype).tobytes())
            self.counts[passage.split] += len(ids)

    def _hold_out_last_tokens(self) -> None:
        count = int(self.counts["train"] * self.fraction)
        kept = (self.counts["train"] - count) * self.dtype.itemsize
        train = self.folder / "train.bin"
        with train.open("rb") as f:
            f.seek(kept)
            (self.folder / "validation.bin").write_bytes(f.read())
        os.truncate(train, kept)
        self.counts = {"train": self.counts["train"] - count, "validation": count}


def split_document(texts: Iterable[str]) -> Iterator[str]:
    """Cut a document into passages of at most `PASSAGE_CHARACTERS`, at paragraphs, lines or words.

    Joined, the passages are the document. Its pieces may be cut anywhere.
    """
    rest = ""
    for text in texts:
        rest, start = rest + text, 0
        while len(rest) - start > PASSAGE_CHARACTERS:
            end = start + PASSAGE_CHARACTERS
            for separator in ("\n\n", "\n", " "):
                cut = rest.rfind(separator, start + PASSAGE_CHARACTERS // 2, end)
                if cut != -1:
                    end = cut + len(separator) if separator != " " else cut
                    break
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _own_manifest(source: DocumentSource) -> dict[str, Any]:
    manifest = getattr(source, "manifest", None)
    return asdict(manifest()) if manifest is not None else {}
