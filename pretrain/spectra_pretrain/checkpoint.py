"""Checkpoints, from which a killed run resumes bit for bit.

``checkpoints/step-000100/`` holds what a run writes of its model (pretraining all of it, in Hugging
Face format; finetuning what is trained), next to ``training.pt`` (optimizer, step, random state;
tensors and numbers only, loaded with weights_only), a copy of the run's own JSON files in ``run/``,
and ``hashes.json`` with the SHA-256 of every file. A folder gets its name after all of it is on
disk. The hashes are checked before a run resumes: a damaged checkpoint is named and stays, and the
run resumes from the one before it.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spectra.models.loading import require_loaded
from spectra.store.durable import sync_folder, sync_tree
from spectra.store.weights import share
from spectra_data.errors import InputError, first_line
from spectra_data.integrity import difference, folder_sha256, sealed, unsealed
from spectra_data.partial import partial_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

FORMAT = 3
WITHOUT_HASHES = 2
"""The format before hashes, which is still read."""
HASHES = "hashes.json"
STATE = "training.pt"
RUN = "run"
"""Folder of a checkpoint with copies of the run's JSON files."""
_NAME = re.compile(r"step-(\d+)")


class SaveError(RuntimeError):
    """A checkpoint or model could not be written; earlier ones are intact."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run."""

    folder: Path
    keep: int = 2

    def latest(self) -> Path | None:
        """The checkpoint of the latest step, intact or not; None if there are none."""
        return max(self._all(), key=step_of, default=None)

    def whole(self, say: Callable[[str], None]) -> Path | None:
        """The latest intact checkpoint; None if there are no checkpoints.

        Parameters
        ----------
        say
            Called with a line for every damaged checkpoint, and for one that has no hashes.

        Raises
        ------
        InputError
            When there are checkpoints, but none is intact.
        """
        damaged: list[str] = []
        for checkpoint in sorted(self._all(), key=step_of, reverse=True):
            fault = _fault(checkpoint)
            if fault is None:
                for line in damaged:
                    say(f"{line}: resuming from {checkpoint.name}")
                if not (checkpoint / HASHES).exists():
                    say(f"{checkpoint} is from a version without hashes: it was not checked")
                return checkpoint
            damaged.append(f"{checkpoint} is damaged ({fault})")
        if damaged:
            raise InputError(
                f"{'; '.join(damaged)}: restore an intact checkpoint, or start in another --out"
            )
        return None

    def save(
        self,
        step: int,
        write_model: Callable[[Path], None],
        state: dict[str, Any],
    ) -> Path:
        """Save the state after `step` optimizer steps, then remove all but the latest `keep`.

        Checkpoints of later steps, which are damaged if a run resumed before them, do not count and
        stay.

        Raises
        ------
        SaveError
            When it cannot be written.
        """
        target = self.folder / f"step-{step:06d}"
        state = {
            **state,
            "format": FORMAT,
            "cpu_random_state": torch.get_rng_state(),
            "cuda_random_states": _cuda_random_states(),
        }
        with appearing(target) as partial:
            write_model(partial)
            torch.save(state, partial / STATE)
            known = {"step": step, "sha256": folder_sha256(partial)}
            (partial / HASHES).write_bytes(sealed(known))
        earlier = [checkpoint for checkpoint in self._all() if step_of(checkpoint) <= step]
        for old in sorted(earlier, key=step_of)[: -self.keep]:
            shutil.rmtree(old)
        return target

    def _all(self) -> list[Path]:
        if not self.folder.exists():
            return []
        return [p for p in self.folder.iterdir() if _NAME.fullmatch(p.name)]


def _fault(checkpoint: Path) -> str | None:
    """Why a checkpoint is not what was written; None if it is, or if it never had hashes."""
    try:
        if not (checkpoint / HASHES).exists():
            old = read_state(checkpoint)["format"] == WITHOUT_HASHES
            return None if old else f"{HASHES} is missing"
        known = unsealed((checkpoint / HASHES).read_bytes())
        found = folder_sha256(checkpoint)
        del found[HASHES]
        if known["step"] != step_of(checkpoint):
            return f"it belongs to step {known['step']}"
        return difference(known["sha256"], found)
    except InputError as error:
        return str(error)
    except (OSError, ValueError, KeyError) as error:
        return f"{HASHES} cannot be read: {error}"


def _cuda_random_states() -> list[torch.Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def step_of(checkpoint: Path) -> int:
    """Optimizer steps done in a checkpoint, from its name."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise InputError(f"{checkpoint} is not a checkpoint: its name is not step-NUMBER")
    return int(match[1])


def load_model(checkpoint: Path) -> "PreTrainedModel":
    """The model of a checkpoint, in float32.

    Raises
    ------
    InputError
        When it cannot be read.
    """
    from transformers import AutoModelForCausalLM

    try:
        auto: Any = AutoModelForCausalLM
        model, report = auto.from_pretrained(
            checkpoint, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        require_loaded(str(checkpoint), model, report)
    except Exception as error:  # many kinds, from the library or safetensors
        reason = first_line(error)
        raise InputError(
            f"the model in {checkpoint} cannot be read ({reason}): remove it"
        ) from error
    loaded: PreTrainedModel = model
    return loaded


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state that was saved next to the model.

    Raises
    ------
    InputError
        When training.pt cannot be read.
    """
    file = checkpoint / STATE
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler can raise anything
        reason = first_line(error)
        raise InputError(f"{file} cannot be read ({reason})") from error
    if state["format"] not in (WITHOUT_HASHES, FORMAT):
        raise InputError(f"{file} has format {state['format']}; this version reads {FORMAT}")
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore the process's random state from a checkpoint."""
    torch.set_rng_state(state["cpu_random_state"])
    if torch.cuda.is_available() and state["cuda_random_states"]:
        torch.cuda.set_rng_state_all(state["cuda_random_states"][: torch.cuda.device_count()])


@contextlib.contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """Fill a folder that gets its name, and replaces an earlier one, once it is on disk."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(target) as partial:
            yield partial
            sync_tree(partial)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            sync_folder(target.parent)
    except Exception as error:  # from the disk; safetensors and torch wrap it in their own kinds
        raise SaveError(f"{target} could not be written: {error}") from error


def save_model(
    folder: Path, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast"
) -> None:
    """Write a model and its tokenizer in Hugging Face format."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    share(folder)
