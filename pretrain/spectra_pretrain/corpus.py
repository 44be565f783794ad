"""The tokens of a run: those that it started with if it is resumed, else those of its corpus."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from spectra_data.documents import DocumentSource
from spectra_data.errors import InputError
from spectra_data.sources import open_source
from spectra_data.tokens import TokenFiles, default_limit, open_tokens, prepare_tokens
from spectra_data.windows import Windows
from spectra_pretrain.session import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MANIFEST = "data.json"


@dataclass(frozen=True)
class Text:
    """The part of a corpus to read."""

    data: str
    field: str
    validation_fraction: float
    max_tokens: int | None
    """Limit of tokens; by default all, of a hub's stream what is needed."""
    needed: int
    """Tokens that the run trains on."""
    seq_len: int


@dataclass(frozen=True)
class Corpus:
    """A tokenizer and its tokens of a corpus."""

    tokenizer: "PreTrainedTokenizerFast"
    tokens: TokenFiles
    seq_len: int

    @property
    def train(self) -> Windows:
        """Windows to train on."""
        return Windows(self.tokens.train, self.seq_len)

    @property
    def validation(self) -> Windows:
        """Windows that training never sees."""
        return Windows(self.tokens.validation, self.seq_len, part="validation")

    @property
    def manifest(self) -> dict[str, Any]:
        """What the tokens were made from."""
        return asdict(self.tokens.manifest)

    def line(self, needed: int) -> str:
        """The arithmetic in words."""
        manifest, train = self.tokens.manifest, self.train
        epochs = needed / (len(train) * train.length)
        return (
            f"corpus {manifest.source}: {manifest.train_tokens:,} training tokens (the run makes "
            f"{epochs:.2g} epochs), {manifest.validation_tokens:,} for validation"
        )


def open_corpus(
    text: Text,
    tokenizer: "Callable[[DocumentSource], PreTrainedTokenizerFast]",
    out: Path,
    console: Console,
    *,
    recorded: "Recorded | None",
    of_run: "Callable[[], PreTrainedTokenizerFast]",
) -> Corpus:
    """The tokens of a run.

    Parameters
    ----------
    text
        The part of the corpus to read.
    tokenizer
        Makes or loads the tokenizer for a corpus.
    out
        Folder of the run, for messages.
    console
        Console that shows progress and what is left out.
    recorded
        The token files that the run started with, if it is resumed.
    of_run
        Loads the tokenizer that the run started with.

    Raises
    ------
    InputError
        When the corpus cannot be read, or is no longer what the run started with.
    """
    if recorded and (tokens := open_tokens(recorded.key)):
        recorded.require(tokens, text, out)
        return Corpus(of_run(), tokens, text.seq_len)
    with console.status("reading the corpus") as status:
        source = open_source(text.data, text.field)
        status.update("preparing the tokenizer")
        made = of_run() if recorded else tokenizer(source)
        status.update("tokenising the corpus")
        needed = round(text.needed / (1 - text.validation_fraction)) + text.seq_len
        tokens = prepare_tokens(
            source,
            made,
            validation_fraction=text.validation_fraction,
            limit=text.max_tokens or default_limit(source, needed),
            progress=lambda message: status.update(f"tokenising the corpus: {message}"),
        )
    for line in tokens.manifest.skipped:
        console.print(f"left out of the corpus: {line}", highlight=False, soft_wrap=True)
    if recorded:
        recorded.require(tokens, text, out)
    return Corpus(made, tokens, text.seq_len)


@dataclass(frozen=True)
class Recorded:
    """The token files that a run started with."""

    key: str
    """Name of the token files."""
    sha256: Mapping[str, str] | None
    """Hashes of both files; None for a task."""

    def require(self, tokens: TokenFiles, text: Text, out: Path) -> None:
        """Require that `tokens` are these."""
        if (tokens.manifest.key, tokens.manifest.sha256) != (self.key, self.sha256):
            raise InputError(
                f"the corpus {text.data} is no longer the one that {out} was trained on, and its "
                "tokens are not in the cache: start a new run in another --out"
            )


def recorded_tokens(out: Path) -> Recorded:
    """The token files that a run started with.

    Raises
    ------
    InputError
        When the run's manifest does not name them.
    """
    manifest = read_json(out / MANIFEST) or {}
    key = manifest.get("key")
    if not isinstance(key, str):
        raise InputError(f"{out / MANIFEST} does not say which tokens the run was trained on")
    return Recorded(key, manifest.get("sha256"))
