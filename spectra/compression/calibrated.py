"""Statistics of a checkpoint on text, and the weightings that methods derive from them."""

import functools
import hashlib
import json
import shutil
from collections.abc import Mapping
from typing import Any

import torch

from spectra.calibration.blocks import open_blocks
from spectra.calibration.options import SELF, Calibration
from spectra.calibration.passes import backward_pass, forward_pass
from spectra.calibration.statistics import BlockStatistics
from spectra.calibration.store import StatisticsFolder, load_tensors, save_tensors
from spectra.calibration.text import (
    about_text,
    corpus_windows,
    own_windows,
    tokenizer_of,
    tokens_sha256,
)
from spectra.checkpoint.checkpoint import Checkpoint
from spectra.checkpoint.digests import combined_sha256, digest
from spectra.compression.settings import Settings
from spectra.compression.truncation import Root, covariance_root, scale_root
from spectra.compression.weighting import Weighting, Weightings
from spectra.machine.progress import Progress
from spectra.models.inputs import require_known
from spectra.models.loading import require_finite
from spectra.models.source import Source
from spectra_data.cache import cache_folder
from spectra_data.errors import InputError
from spectra_data.sources import TEXT_FIELD, open_source

KEPT_BYTES = 8e9
"""Size of statistics in bytes above which they are removed after use."""


def calibrate(source: Source, settings: Settings, device: str, progress: Progress) -> Weightings:
    """Take statistics of a checkpoint, or load them from the cache.

    They are identified by the hashes of weights and tokens and by the settings, so that they are
    never confused with those of another model, text or tokenizer.

    Raises
    ------
    InputError
        When the model or the text cannot be opened.
    """
    windows, about = calibration_text(source, settings.calibration, device)
    if settings.method == "sequential":
        return Weightings(_unknown, about)
    gradients = settings.method == "fisher"
    checkpoint = source.checkpoint
    sha256 = _finite_sha256(checkpoint)
    known = {"checkpoint": checkpoint.identity, "weights": sha256, "tokens": about["tokens_sha256"]}
    both = StatisticsFolder({**known, "gradients": True, "seed": settings.calibration.seed})
    blocks = {m.name: m.block for m in checkpoint.matrices}
    needed = list(dict.fromkeys(blocks.values()))
    folder = both
    if not all(both.intact(block) for block in needed):
        # both include statistics of inputs, which alone need no backward pass
        folder = both if gradients else StatisticsFolder({**known, "gradients": False})
        if not all(folder.intact(block) for block in needed):
            _take(source, folder, windows, gradients, settings, device, progress)
    return Weightings(
        _Weighing(folder, blocks, settings).of,
        about | {"checkpoint_sha256": sha256},
        functools.partial(_tidy, folder),
    )


def _finite_sha256(checkpoint: Checkpoint) -> str:
    """The hash of the weights; raises on the first that is not finite."""
    digests = {}
    for matrix in checkpoint.matrices:
        weight = checkpoint.read(matrix)
        require_finite(checkpoint.name, [(matrix.name, weight)])
        digests[matrix.name] = digest(weight)
    return combined_sha256(digests)


def calibration_text(
    source: Source, calibration: Calibration, device: str
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
        windows = _written(source, calibration, device)
        return windows, {"tokens_sha256": tokens_sha256(windows)}
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


def _written(source: Source, calibration: Calibration, device: str) -> torch.Tensor:
    """The model's own text, written once and cached, as writing takes minutes."""
    size = {"windows": calibration.windows, "length": calibration.length}
    known = [source.checkpoint.identity, size, calibration.seed]
    key = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
    path = cache_folder("calibration", f"text-{key}.safetensors")
    if (kept := load_tensors(path)) is not None:
        return kept[0]["windows"]
    windows = own_windows(source, **size, seed=calibration.seed, device=device)
    save_tensors(path, {"windows": windows}, {})
    return windows


def _take(
    source: Source,
    folder: StatisticsFolder,
    windows: torch.Tensor,
    gradients: bool,
    settings: Settings,
    device: str,
    progress: Progress,
) -> None:
    blocks = open_blocks(source, device)
    batch_size = settings.calibration.batch_size
    if gradients:
        passed = backward_pass(
            blocks,
            windows,
            batch_size=batch_size,
            seed=settings.calibration.seed,
            progress=progress,
        )
    else:
        passed = forward_pass(blocks, windows, batch_size=batch_size, progress=progress)
    for seen in passed:
        folder.save(seen.name, seen.statistics)


def _tidy(folder: StatisticsFolder) -> None:
    if folder.bytes > KEPT_BYTES:
        shutil.rmtree(folder.path, ignore_errors=True)


def _unknown(name: str) -> Weighting:
    raise AssertionError(f"{name}: sequential weightings depend on the map")


class _Weighing:
    """Weightings from statistics; those of the block used last stay in memory."""

    def __init__(
        self, folder: StatisticsFolder, blocks: Mapping[str, str], settings: Settings
    ) -> None:
        self._folder = folder
        self._blocks = blocks
        self._settings = settings
        self._now: tuple[str, BlockStatistics] | None = None
        self._roots: dict[int, Root] = {}

    def of(self, name: str) -> Weighting:
        block = self._blocks[name]
        if self._now is None or self._now[0] != block:
            self._now, self._roots = (block, self._folder.load(block)), {}
        return weighting_of(name[len(block) + 1 :], self._now[1], self._settings, self._roots)


def weighting_of(
    layer: str, statistics: BlockStatistics, settings: Settings, roots: dict[int, Root]
) -> Weighting:
    """The weighting of a layer by a method, from its block's statistics.

    Parameters
    ----------
    layer
        Name of the layer within the block.
    statistics
        Statistics of the block.
    settings
        Method and shrinkage.
    roots
        Roots by group, shared by layers that read the same input; new ones are added.

    Raises
    ------
    InputError
        When the layer was never reached, or its statistics are not finite.
    """
    if layer not in statistics.groups:
        raise InputError(
            "calibration never reached its layer: name more windows, or use --method svd"
        )
    group = statistics.groups[layer]
    if group not in roots:
        moments = statistics.inputs[group]
        roots[group] = (
            scale_root(moments.magnitude, settings.asvd_exponent)
            if settings.method == "asvd"
            else covariance_root(moments.covariance, shrinkage=settings.shrink)
        )
    if settings.method != "fisher":
        return Weighting(roots[group])
    outputs = covariance_root(statistics.gradients[layer].covariance, shrinkage=settings.shrink)
    return Weighting(roots[group], outputs)
