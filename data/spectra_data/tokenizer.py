"""Tokenizers: loaded from a path or a hub, or trained on the corpus.

A trained tokenizer is a byte-level BPE (no unknown token, every text round-trips) with ``<s>`` and
``</s>``. It is trained on the corpus's first `TRAINING_CHARACTERS`, which for English is enough for
32 000 merges, and cached by the corpus's fingerprint. The files' hashes are checked before they are
used.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spectra_data.cache import cache_folder, discard, new_folder
from spectra_data.documents import DocumentSource, Skips
from spectra_data.errors import InputError, first_line
from spectra_data.integrity import difference, folder_sha256, sealed, unsealed
from spectra_data.pointers import require_fetched
from spectra_data.reading import read_json, require_utf8

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT = 2
TRAIN = "train"
MANIFEST = "manifest.json"
TRAINING_CHARACTERS = 64_000_000
BOS, EOS = "<s>", "</s>"
SMALLEST_VOCABULARY = 256 + 2
"""All bytes and the two special tokens."""
CHARACTERS_PER_MERGE = 2000
"""Characters of text that a merge needs, so that its token occurs some fifty times."""
CHARACTERS_PER_TOKEN = 4
"""Approximate characters of a token."""


@dataclass(frozen=True)
class FittedVocabulary:
    """A vocabulary that is smaller than a model's own if the text or the model is small.

    A text carries one merge for every `CHARACTERS_PER_MERGE` characters. If that does not fill the
    model's own vocabulary, embedding and head weigh at most as much as the blocks.
    """

    own: int
    """Number of tokens in the model's own vocabulary."""
    balanced: int
    """Number of tokens with which embedding and head weigh as much as the blocks."""
    max_tokens: int | None = None
    """Number of tokens of the text that are used; None for all."""

    def size(self, characters: int) -> int:
        """Number of tokens for a text of a number of characters.

        >>> FittedVocabulary(own=32_000, balanced=3_136).size(8_000_000)
        3136
        >>> FittedVocabulary(own=32_000, balanced=3_136).size(64_000_000)
        32000
        """
        if self.max_tokens is not None:
            characters = min(characters, CHARACTERS_PER_TOKEN * self.max_tokens)
        carried = SMALLEST_VOCABULARY + characters // CHARACTERS_PER_MERGE
        if carried >= self.own:
            return max(SMALLEST_VOCABULARY, self.own)
        fitted = min(carried, self.balanced) // 64 * 64  # matrix products of such widths are fast
        return max(SMALLEST_VOCABULARY, fitted)


def resolve_tokenizer(
    spec: str, source: DocumentSource, vocabulary: int | FittedVocabulary
) -> "PreTrainedTokenizerFast":
    """The tokenizer that `spec` names: ``train``, or the path or hub name of a trained one.

    Parameters
    ----------
    spec, source
        Name of the tokenizer, and the corpus to train it on.
    vocabulary
        Number of tokens if it is trained, or the rule that derives it from the text's length.
    """
    if spec != TRAIN:
        return load_tokenizer(spec)
    key = hashlib.sha256(f"{FORMAT} {source.fingerprint()} {vocabulary}".encode()).hexdigest()[:16]
    folder = cache_folder("tokenizers", key)
    if not _is_whole(folder):
        texts: Iterable[str] = (piece.text for piece in source.pieces(Skips()))
        if isinstance(vocabulary, FittedVocabulary):
            # kept: reading a stream a second time may mean fetching it again
            texts = list(_first_characters(texts, TRAINING_CHARACTERS))
            vocabulary = vocabulary.size(sum(map(len, texts)))
        tokenizer = train_tokenizer(texts, vocabulary)
        with new_folder(folder) as partial:
            tokenizer.save_pretrained(partial)
            (partial / MANIFEST).write_bytes(sealed({"sha256": folder_sha256(partial)}))
    return load_tokenizer(str(folder))


def expected_characters(source: DocumentSource) -> int:
    """Characters that a tokenizer would be trained on, without fetching or writing anything."""
    if source.expected_characters is not None:
        return min(source.expected_characters, TRAINING_CHARACTERS)
    texts = (piece.text for piece in source.pieces(Skips()))
    return sum(map(len, _first_characters(texts, TRAINING_CHARACTERS)))


def _is_whole(folder: Path) -> bool:
    """Whether a cached tokenizer exists and is what was written; removes it if it is damaged."""
    if not folder.exists():
        return False
    try:
        known = unsealed((folder / MANIFEST).read_bytes())["sha256"]
        found = folder_sha256(folder)
        del found[MANIFEST]
        fault: object = difference(known, found)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        fault = error
    if fault is not None:
        discard(folder, fault)
    return fault is None


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE of at most `vocab_size` tokens (fewer on a very small corpus).

    Raises
    ------
    InputError
        When `vocab_size` is too small to hold every byte.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < SMALLEST_VOCABULARY:
        raise InputError(
            f"a byte-level vocabulary has at least {SMALLEST_VOCABULARY} tokens, not {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first_characters(texts, TRAINING_CHARACTERS), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(spec: str) -> "PreTrainedTokenizerFast":
    """Load a tokenizer from a folder, a ``tokenizer.json``, or a hub.

    Raises
    ------
    InputError
        When there is none under that name, or it has no fast (``tokenizers``) form.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = Path(spec).expanduser()
    require_utf8(path)
    require_fetched(path)
    try:
        if path.is_file():
            return PreTrainedTokenizerFast(tokenizer_file=str(path), **_special_tokens(path))
        # a path must exist; anything else is a hub's name
        local = path.exists() or spec.startswith((".", "/", "~"))
        tokenizer = AutoTokenizer.from_pretrained(
            str(path) if local else spec, local_files_only=local
        )
    except Exception as error:  # the library raises bare Exception for a malformed file
        reason = first_line(error)
        raise InputError(
            f"cannot load the tokenizer {spec!r} ({reason}): give a folder or file with "
            "tokenizer.json, a hub name, or `train`"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"the tokenizer {spec!r} has no tokenizer.json, which is needed here")
    return tokenizer


def tokenizer_sha256(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Hash of everything that decides which tokens a text becomes."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def end_of_document(tokenizer: "PreTrainedTokenizerFast") -> int:
    """The token put after every document: the end token, else the beginning token."""
    token = tokenizer.eos_token_id
    if token is None:
        token = tokenizer.bos_token_id
    if not isinstance(token, int):
        raise InputError("the tokenizer has no end or beginning token to separate documents")
    return token


def _special_tokens(file: Path) -> dict[str, str]:
    """The end and beginning tokens of a bare tokenizer.json, by their usual names."""
    added = {token["content"] for token in read_json(file).get("added_tokens", [])}
    found = {}
    for role, names in {
        "eos_token": (EOS, "<|endoftext|>", "<|end_of_text|>", "<eos>"),
        "bos_token": (BOS, "<|begin_of_text|>", "<bos>"),
    }.items():
        if name := next((n for n in names if n in added), None):
            found[role] = name
    return found


def _first_characters(texts: Iterable[str], limit: int) -> Iterator[str]:
    total = 0
    for text in texts:
        yield text
        total += len(text)
        if total >= limit:
            return
