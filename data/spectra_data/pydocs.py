"""The corpus on every machine: the documentation strings of the installed Python packages.

Real English, offline, about 8 MB: the standard library first, then the packages that this project
depends on, at most `PACKAGE_BYTES` of each so that none dominates. One document is one module: its
documentation strings in the order of the source. Doctests and tables are dropped by paragraph, and
a paragraph appears once in the whole corpus, since packages repeat their parameter descriptions by
the hundred. The trade-off: the corpus depends on the installed versions; its manifest names them,
and its fingerprint is a hash of the documents.
"""

import ast
import functools
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import sys
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from spectra_data.cache import cache_folder, discard, new_folder
from spectra_data.documents import DocumentSource, Skips
from spectra_data.integrity import sealed, unsealed

FORMAT = 2
DOCUMENTS = "documents.jsonl"
TOTAL_BYTES = 8_000_000
PACKAGE_BYTES = 1_500_000
STANDARD_LIBRARY = "the standard library"
PACKAGES = (
    "numpy", "xarray", "zarr", "dask", "torch", "transformers", "plotly", "pyarrow", "rich", "tyro",
    "huggingface_hub", "tokenizers", "safetensors",
)  # fmt: skip
LEFT_OUT_FOLDERS = {"test", "tests", "testing", "_tests", "idle_test", "pydoc_data", "lib2to3"}
LEFT_OUT_FOLDERS |= {"__pycache__", "site-packages", "dist-packages"}
_BLANK = re.compile(r"\n[^\S\n]*\n")
"""A line that shows nothing, be it empty or of blanks."""
Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Manifest:
    """What the corpus was made from, kept with every run that was trained on it."""

    format: int
    python: str
    packages: dict[str, dict[str, str | int]]
    """Per package: version, documents, bytes."""
    left_out: dict[str, str]
    """Package or file -> why it is not in the corpus."""
    documents: int
    bytes: int
    sha256: str
    """Hash of all documents, in order."""


@dataclass(frozen=True)
class PydocsSource(DocumentSource):
    """Documentation strings of the standard library and installed packages, cached once made."""

    expected_characters: ClassVar[int] = TOTAL_BYTES

    @property
    def name(self) -> str:
        return "pydocs"

    def fingerprint(self) -> str:
        return self.manifest().sha256

    def manifest(self) -> Manifest:
        return _read_manifest(self._folder())

    def documents(self, skips: Skips) -> Iterator[str]:
        folder = self._folder()
        for location, reason in self.manifest().left_out.items():
            skips.add(location, reason)
        yield from _read_documents(folder)

    def _folder(self) -> Path:
        folder = cache_folder("pydocs", _environment_key())
        if not _is_whole(folder):
            documents, manifest = collect()
            with new_folder(folder) as partial:
                with (partial / DOCUMENTS).open("w", encoding="utf-8") as f:
                    f.writelines(json.dumps(document) + "\n" for document in documents)
                (partial / "manifest.json").write_bytes(sealed(asdict(manifest)))
            _checked.add(folder)
        return folder


_checked: set[Path] = set()
"""Cached corpora whose hash this process has checked."""


def _is_whole(folder: Path) -> bool:
    """Whether the cached corpus exists and is what was written; removes it if it is damaged."""
    if not folder.exists():
        return False
    if folder in _checked:
        return True
    try:
        if _read_manifest(folder).sha256 != _sha256(list(_read_documents(folder))):
            raise ValueError(f"{DOCUMENTS} is not what was written")
    except (OSError, ValueError, TypeError) as error:
        discard(folder, error)
        return False
    _checked.add(folder)
    return True


def _read_manifest(folder: Path) -> Manifest:
    return Manifest(**unsealed((folder / "manifest.json").read_bytes()))


def _read_documents(folder: Path) -> Iterator[str]:
    with (folder / DOCUMENTS).open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _sha256(documents: list[str]) -> str:
    return hashlib.sha256("\0".join(documents).encode()).hexdigest()


def collect() -> tuple[list[str], Manifest]:
    """Read the documentation strings; takes about eight seconds on one core."""
    collecting = gc.isenabled()
    gc.disable()  # syntax trees have millions of nodes and no cycles: saves a third of the time
    try:
        return _collect()
    finally:
        if collecting:
            gc.enable()


def _collect() -> tuple[list[str], Manifest]:
    seen: set[bytes] = set()
    documents: list[str] = []
    packages: dict[str, dict[str, str | int]] = {}
    left_out: dict[str, str] = {}
    remaining = TOTAL_BYTES
    for package in (STANDARD_LIBRARY, *PACKAGES):
        root = _root(package)
        if root is None:
            left_out[package] = "not installed"
            continue
        budget = remaining if package == STANDARD_LIBRARY else min(PACKAGE_BYTES, remaining)
        count = size = 0
        for file in _modules(root):
            if size >= budget:
                break
            try:
                document = _document(file, seen)
            except (SyntaxError, ValueError, OSError) as error:
                left_out[f"{package}: {file.relative_to(root)}"] = f"cannot be parsed ({error})"
                continue
            if document:
                documents.append(document)
                count, size = count + 1, size + len(document.encode())
        packages[package] = {"version": _version(package), "documents": count, "bytes": size}
        remaining = max(0, remaining - size)
    digest = _sha256(documents)
    total = sum(len(d.encode()) for d in documents)
    python = sys.version.split()[0]
    manifest = Manifest(FORMAT, python, packages, left_out, len(documents), total, digest)
    return documents, manifest


def _document(file: Path, seen: set[bytes]) -> str:
    """A module's documentation strings as one text, without the paragraphs already in `seen`."""
    with tokenize.open(file) as f:  # heeds the file's coding line
        source = f.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # other people's escape sequences
        tree = ast.parse(source)
    paragraphs = []
    for definition in _definitions(tree):
        for block in _BLANK.split(ast.get_docstring(definition) or ""):
            paragraph = textwrap.dedent(block.strip("\n")).rstrip()
            if not _is_english(paragraph):
                continue
            key = hashlib.blake2b(" ".join(paragraph.split()).encode(), digest_size=16).digest()
            if key not in seen:
                seen.add(key)
                paragraphs.append(paragraph)
    return "\n\n".join(paragraphs)


def _definitions(node: ast.AST) -> Iterator[Definition]:
    """The module, classes and functions in the order of the source; expressions are skipped."""
    if isinstance(node, Definition):
        yield node
    for block in ("body", "orelse", "finalbody", "handlers", "cases"):
        statements = getattr(node, block, ())
        for statement in statements if isinstance(statements, list) else ():
            yield from _definitions(statement)


def _is_english(paragraph: str) -> bool:
    """Prose rather than doctests, tables and signatures: words, and mostly letters."""
    if paragraph.lstrip().startswith((">>>", "...", "+-", "|", ".. code")):
        return False
    letters = sum(map(str.isalpha, paragraph)) + paragraph.count(" ")
    return len(paragraph.split()) >= 6 and letters >= 0.8 * len(paragraph)


def _modules(root: Path) -> list[Path]:
    return sorted(
        file
        for file in root.rglob("*.py")
        if not LEFT_OUT_FOLDERS.intersection(file.relative_to(root).parts[:-1])
    )


def _root(package: str) -> Path | None:
    if package == STANDARD_LIBRARY:
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def _version(package: str) -> str:
    if package == STANDARD_LIBRARY:
        return sys.version.split()[0]
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@functools.cache
def _environment_key() -> str:
    """Name of the cached corpus, which changes with any version and with this module's rules."""
    installed = {p: _version(p) for p in (STANDARD_LIBRARY, *PACKAGES) if _root(p)}
    return hashlib.sha256(json.dumps([FORMAT, installed]).encode()).hexdigest()[:16]
