"""Addresses of checkpoints: what a user may type for one, or for a series of them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import fsspec

from spectra.checkpoint import deepspeed, update
from spectra.checkpoint.folder import Folder
from spectra.checkpoint.formats import FORMATS, PIECE, suffix_of
from spectra.checkpoint.notes import note
from spectra.checkpoint.shards import INDICES, is_other_state, is_weights
from spectra_data.errors import InputError
from spectra_data.reading import reading

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LAST_NUMBER = re.compile(r"(\d+)(?=\D*$)")
_STEP = re.compile(r"(step|checkpoint|ckpt|iter(ation)?)[-_=]?\d+", re.IGNORECASE)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_INNER = re.compile(r"pytorch_model_fsdp_\d+")
"""Folder that accelerate puts into a checkpoint's folder, with the weights."""
_LONGEST_NAME = 255


@dataclass(frozen=True)
class Address:
    """Address of one checkpoint."""

    place: str
    """A folder, a file, a URL, or a hub name."""
    revision: str | None = None
    """Branch, tag or commit on a hub."""

    def __str__(self) -> str:
        return self.place if self.revision is None else f"{self.place}@{self.revision}"

    @property
    def name(self) -> str:
        """Name of the model at this address: a hub name, or the last part of a path."""
        if self.is_hub_name or "://" in self.place:
            return self.place.rstrip("/")
        return Path(self.place).resolve().name

    @property
    def is_hub_name(self) -> bool:
        """Whether it can only be a name on a hub."""
        return "://" not in self.place and not Path(self.place).exists()

    def resolved(self) -> "Address":
        """The same address with an absolute path, for processes that run in other folders."""
        return Address(str(Path(self.place).resolve()), self.revision)

    @property
    def step(self) -> int | None:
        """The last number in the revision or the name: ``step1000``, ``checkpoint-500``."""
        text = self._numbered
        if _COMMIT.fullmatch(text):
            return None
        named = list(_STEP.finditer(text))
        match = _LAST_NUMBER.search(named[-1][0] if named else text)
        return int(match[1]) if match else None

    @property
    def says_step(self) -> bool:
        """Whether the name marks its number as a step."""
        return _STEP.search(self._numbered) is not None

    @property
    def _numbered(self) -> str:
        """The revision, or the name that may have a step in it."""
        if self.revision:
            return self.revision
        path = Path(self.place)
        if not _INNER.fullmatch(path.name) and not _is_latest(path.parent, path.name):
            return path.name
        return path.name if _is_step(path) else path.resolve().parent.name


def addresses(places: Sequence[str]) -> list[Address]:
    """The checkpoints that a user named; a series becomes its checkpoints.

    Parameters
    ----------
    places
        Paths, URLs and hub names. ``NAME@rev1,rev2,…`` stands for one checkpoint per revision; a
        folder of numbered folders stands for one checkpoint per folder, sorted by number.

    Raises
    ------
    InputError
        When a path does not exist and is not a hub name.
    """
    found = [address for place in places for address in _of_one(place)]
    if not found:
        raise InputError("name a checkpoint: a folder, a file, or a hub's owner/name")
    return found


def one_address(place: str) -> Address:
    """The checkpoint that a user named, where a command accepts only one.

    Raises
    ------
    InputError
        When there is no checkpoint, or a series of them.
    """
    found = addresses([place])
    if len(found) > 1:
        raise InputError(f"{place} holds {len(found)} checkpoints: name one, e.g. {found[-1]}")
    return found[0]


def steps_of(series: Sequence[Address]) -> list[int]:
    """The step of every checkpoint in a series: its number, or its position if one has no number.

    Raises
    ------
    InputError
        When two have the same number.
    """
    steps = [address.step for address in series]
    if len(series) == 1:  # a number alone may be the model's size
        return [steps[0] or 0 if series[0].says_step else 0]
    if any(step is None for step in steps):
        return list(range(len(series)))
    known = [step for step in steps if step is not None]
    for number, step in enumerate(known):
        if step in known[:number]:
            first = series[known.index(step)]
            raise InputError(f"{first} and {series[number]} are both step {step}")
    return known


def open_folder(address: Address) -> tuple[Folder, str | None]:
    """The files at an address, and the commit that a hub revision points to now.

    Raises
    ------
    InputError
        When the address cannot be reached.
    """
    if address.is_hub_name:
        return _hub(address)
    path = address.place
    if "://" not in path:
        path = str(Path(path).absolute())  # a hub's cache links to files without a suffix
    with reading(address.place):
        system, root = fsspec.core.url_to_fs(path)
        # on a remote system, isdir may fetch the whole file
        single = suffix_of(root) is not None and not ("://" not in path and system.isdir(root))
    if single:
        parent, _, name = root.rpartition("/")
        return Folder(system, parent, named=name), None
    return Folder(system, root), None


def home_of(place: Path) -> Path:
    """The folder of a local checkpoint's configuration and tokenizer.

    It is the checkpoint's own, or the one around a folder that a trainer made for weights alone.
    """
    folder = place if place.is_dir() else place.parent
    outer = folder.resolve().parent
    if (folder / "config.json").is_file() or not (outer / "config.json").is_file():
        return folder
    return outer if _inner(outer) == folder.resolve() or _is_step(folder) else folder


def _of_one(place: str) -> Iterator[Address]:
    if "://" in place:
        yield Address(place)
    elif Path(place).is_dir():
        yield from _of_folder(Path(place))
    elif Path(place).exists():
        if place.endswith(PIECE):
            raise InputError(f"{place} holds pieces of tensors: name its folder")
        if suffix_of(place) is None:
            raise InputError(
                f"{place} is not a checkpoint: expected a folder, or a file ending in "
                f"{', '.join(FORMATS)}"
            )
        yield Address(place)
    else:
        name, _, revisions = place.partition("@")
        if not _HUB_NAME.fullmatch(name) or suffix_of(name) is not None:
            raise InputError(f"no checkpoint at {place}: neither a path nor a hub's owner/name")
        for revision in revisions.split(",") if revisions else [None]:
            yield Address(name, revision.strip() if revision else None)


def _of_folder(folder: Path) -> Iterator[Address]:
    folders = sorted(p for p in folder.iterdir() if p.is_dir() and not is_other_state(p.name))
    inner = [weights for p in folders if (weights := _weights_of(p)) is not None]
    if _holds_weights(folder):
        steps = [p.name for p in inner if Address(str(p)).says_step]
        if steps:
            note(f"reading {folder} itself, not {', '.join(steps)} in it: name those for a series")
        yield Address(str(folder))
        return
    if (folder / "snapshots").is_dir():
        yield from _of_cache(folder)
        return
    if (latest := _inner(folder)) in inner and len(inner) == 1:
        yield Address(str(latest))
        return
    numbered = [p for p in inner if Address(str(p)).step is not None]
    if not numbered:
        raise InputError(
            f"{folder} holds no checkpoint: no {', '.join(FORMATS)} files, and no folders of "
            "such files with a step in their names"
        )
    if others := [p.name for p in inner if p not in numbered]:
        note(f"{', '.join(others)} in {folder} {_are(others)} left out: no step in the name")
    for path in sorted(numbered, key=lambda p: Address(str(p)).step or 0):
        yield Address(str(path))


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _of_cache(folder: Path) -> Iterator[Address]:
    """The snapshot in a folder of a hub's cache that its main branch last pointed to."""
    snapshots = [p for p in (folder / "snapshots").iterdir() if p.is_dir() and _holds_weights(p)]
    main = folder / "refs" / "main"
    if main.is_file():
        head = main.read_text(encoding="utf-8", errors="replace").strip()
        snapshots = [p for p in snapshots if p.name == head] or snapshots
    if len(snapshots) != 1:
        raise InputError(
            f"{folder} is a hub's cache of {len(snapshots)} snapshots with weights: name one of "
            "the folders in its folder snapshots"
        )
    yield Address(str(snapshots[0]))


def _holds_weights(folder: Path) -> bool:
    return any(
        is_weights(path.name)
        or path.name in (*INDICES, *update.WEIGHTS)
        or path.name.endswith(PIECE)
        for path in folder.iterdir()
    )


def _weights_of(folder: Path) -> Path | None:
    """The folder itself, or the one that a trainer put into it, if it holds weights."""
    inner = folder if _holds_weights(folder) else _inner(folder)
    return inner if inner is not None and _holds_weights(inner) else None


def _inner(folder: Path) -> Path | None:
    """The folder of weights that a trainer put into a checkpoint's folder, if it is there."""
    found = (p for p in folder.iterdir() if _INNER.fullmatch(p.name) or _is_latest(folder, p.name))
    return next((path for path in sorted(found) if path.is_dir()), None)


def _is_latest(folder: Path, name: str) -> bool:
    """Whether DeepSpeed's note in a folder names one of its folders."""
    file = folder / deepspeed.LATEST
    if not file.is_file() or file.stat().st_size > _LONGEST_NAME:
        return False
    return file.read_text(encoding="utf-8", errors="replace").strip() == name


def _is_step(folder: Path) -> bool:
    return deepspeed.FOLDER.fullmatch(folder.name) is not None


def _hub(address: Address) -> tuple[Folder, str]:
    from huggingface_hub import HfApi, HfFileSystem
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = address.place
    try:
        commit = HfApi().model_info(name, revision=address.revision).sha
    except GatedRepoError as error:
        raise InputError(f"{name} needs a licence: accept it, then `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{name} has no revision {address.revision!r} on the hub") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"no checkpoint at {name}: neither a path nor a name on the hub"
        ) from error
    except Exception as error:  # from the network, or the HTTP library
        first = str(error).strip().splitlines()[:1]
        raise InputError(
            f"{name} is not a local path, and the hub cannot be reached: "
            f"{first[0] if first else type(error).__name__}"
        ) from error
    assert commit is not None
    return Folder(HfFileSystem(), f"{name}@{commit}"), commit
