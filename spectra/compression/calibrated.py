"""The matrices of a checkpoint, weighted by what text shows of them and decomposed."""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from spectra.calibration.blocks import open_blocks
from spectra.calibration.options import SELF, Calibration
from spectra.calibration.passes import Pass
from spectra.calibration.store import load_tensors, save_tensors
from spectra.calibration.text import (
    TooSlowError,
    about_text,
    corpus_windows,
    own_windows,
    tokenizer_of,
    tokens_sha256,
)
from spectra.checkpoint.checkpoint import Checkpoint
from spectra.checkpoint.digests import combined_sha256, digest
from spectra.checkpoint.notes import note
from spectra.compression.block import decompose_block
from spectra.compression.methods import WEIGHING
from spectra.compression.scratch import FromScratch, Scratch
from spectra.compression.settings import Settings
from spectra.compression.space import calibration_bytes, require_space, states_bytes
from spectra.compression.weighting import UNREACHED, Weightings
from spectra.machine.progress import Progress, silent
from spectra.matrices import Matrix
from spectra.models.inputs import require_known
from spectra.models.loading import require_finite
from spectra.models.source import Source
from spectra_data.cache import cache_folder
from spectra_data.errors import InputError
from spectra_data.sources import TEXT_FIELD, open_source

INSTEAD = "pydocs"
"""Text to calibrate on where a model would write its own for too long."""


def calibrate(
    source: Source,
    settings: Settings,
    device: str,
    progress: Progress,
    *,
    names: Collection[str] | None = None,
    keep: bool = False,
) -> Weightings:
    """Decompose the matrices of a checkpoint, weighted by text, or find them decomposed.

    The decompositions are known by the hashes of weights and tokens and by the settings, so that
    they are never confused with those of another model, text or tokenizer.

    Parameters
    ----------
    source
        Checkpoint.
    settings
        Method and calibration.
    device
        Device on which blocks run and matrices are decomposed.
    progress
        Called with a stage, the number of its steps done, and their total.
    names
        Matrices to decompose; all by default.
    keep
        Whether the decompositions stay on disk after use, however large they are.

    Raises
    ------
    InputError
        When the model or the text cannot be opened, or a matrix's statistics are not finite.
    """
    windows, about = calibration_text(source, settings.calibration, device, progress)
    checkpoint = source.checkpoint
    sha256 = finite_sha256(checkpoint)
    wanted: dict[str, list[Matrix]] = {}
    for matrix in checkpoint.matrices:
        if names is None or matrix.name in names:
            wanted.setdefault(matrix.block, []).append(matrix)
    blocks = {matrix.name: block for block, inside in wanted.items() for matrix in inside}
    scratch = Scratch(
        {
            "checkpoint": checkpoint.identity,
            "weights": sha256,
            "tokens": about["tokens_sha256"],
            "weighting": settings.weighting(),
            "matrices": sorted(blocks),
        }
    )
    if any(scratch.reached(block) is None for block in wanted):
        with scratch.held():
            states = states_bytes(windows, source)
            needed = calibration_bytes(list(wanted.values()), states, WEIGHING[settings.method])
            require_space(scratch.path, needed, scratch.bytes, f"calibration for {settings.method}")
            _take(source, scratch, wanted, windows, settings, device, progress)
    reached = frozenset().union(*(scratch.reached(block) or () for block in wanted))
    return Weightings(
        lambda name: _found(scratch, blocks[name], name),
        about | {"checkpoint_sha256": sha256},
        frozenset(blocks) - reached,
        lambda: None if keep else scratch.tidy(),
    )


def _found(scratch: Scratch, block: str, name: str) -> FromScratch:
    reached = scratch.reached(block)
    if reached is not None and name not in reached:
        raise InputError(UNREACHED)
    return FromScratch(scratch, name)


def finite_sha256(checkpoint: Checkpoint) -> str:
    """The hash of the weights; raises on the first that is not finite."""
    digests = {}
    for matrix in checkpoint.matrices:
        weight = checkpoint.read(matrix)
        require_finite(checkpoint.name, [(matrix.name, weight)])
        digests[matrix.name] = digest(weight)
    return combined_sha256(digests)


def calibration_text(
    source: Source, calibration: Calibration, device: str, progress: Progress = silent
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Windows to calibrate on, (windows, length), and their identity.

    Raises
    ------
    InputError
        When the text cannot be opened, or is too short.
    """
    config = source.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and calibration.length > longest:
        raise InputError(
            f"the model takes {longest} tokens, not calibration windows of {calibration.length}: "
            "name a smaller --seq-len"
        )
    if calibration.data == SELF:
        try:
            windows = _written(source, calibration, device, progress)
            return windows, {"tokens_sha256": tokens_sha256(windows)}
        except TooSlowError as error:
            note(
                f"{source} would write its own text for {error}, longer than --own-text-hours: "
                f"calibrating on {INSTEAD}"
            )
            calibration = dataclasses.replace(calibration, data=INSTEAD)
    # before the tokenizer, which may take a while
    corpus = open_source(calibration.data, calibration.text_field)
    tokenizer = tokenizer_of(source, calibration.tokenizer)
    windows = corpus_windows(
        corpus, tokenizer, windows=calibration.windows, length=calibration.length
    )
    require_known(int(windows.max()), config.vocab_size)
    about = about_text(corpus, tokenizer, windows)
    if calibration.text_field != TEXT_FIELD:
        about["text_field"] = calibration.text_field
    return windows, about


def _written(
    source: Source, calibration: Calibration, device: str, progress: Progress
) -> torch.Tensor:
    """The model's own text, written once and cached, as writing takes minutes."""
    if (kept := kept_text(source, calibration)) is not None:
        return kept
    windows = own_windows(
        source,
        windows=calibration.windows,
        length=calibration.length,
        seed=calibration.seed,
        device=device,
        hours=calibration.own_text_hours,
        progress=progress,
    )
    save_tensors(_text_file(source, calibration), {"windows": windows}, {})
    return windows


def kept_text(source: Source, calibration: Calibration) -> torch.Tensor | None:
    """The model's own text if it was written before, (windows, length); else None."""
    kept = load_tensors(_text_file(source, calibration))
    return None if kept is None else kept[0]["windows"]


def _text_file(source: Source, calibration: Calibration) -> Path:
    size = {"windows": calibration.windows, "length": calibration.length}
    known = [source.checkpoint.identity, size, calibration.seed]
    key = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
    return cache_folder("calibration", f"text-{key}.safetensors")


def _take(
    source: Source,
    scratch: Scratch,
    wanted: Mapping[str, Sequence[Matrix]],
    windows: torch.Tensor,
    settings: Settings,
    device: str,
    progress: Progress,
) -> None:
    """Run the pass, and decompose the matrices of each block as it is left."""
    method = WEIGHING[settings.method]
    run = Pass(
        open_blocks(source, device),
        windows,
        lambda layer: method.wanted(*layer.weight.shape),
        scratch.states,
        lambda block: block not in wanted or scratch.reached(block) is not None,
        settings.calibration.batch_size,
        settings.calibration.seed,
        progress,
    )
    for seen in run.backwards() if method.backward else run.forwards():
        names = [matrix.name for matrix in wanted[seen.name]]
        decompose_block(seen, names, method, settings, scratch)
