"""One model, whose matrices are replaced for a measurement and then restored."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from spectra.allocation.allocate import Maker
from spectra.allocation.candidates import Candidates, candidates_of
from spectra.allocation.methods.registry import METHODS
from spectra.allocation.options import AllocationSettings
from spectra.allocation.rankmap import RankMap
from spectra.allocation.target import Target
from spectra.calibration.outliers import outlier_shares
from spectra.calibration.text import tokenizer_of
from spectra.checkpoint.checkpoint import Checkpoint
from spectra.compression.budget import loss_candidates, map_of_least_loss
from spectra.compression.calibrated import calibrate, calibration_text
from spectra.compression.settings import Settings
from spectra.compression.sources import ModelState, require_dtype
from spectra.compression.weighting import Weightings, plain_weightings
from spectra.evaluation.perplexity import perplexity, text_tokens
from spectra.experiments.measured import Setup
from spectra.experiments.settings import PerplexitySettings
from spectra.models.loading import load_whole
from spectra.models.source import Source
from spectra.scanning.scan import scan
from spectra.storages.registry import DEFAULT_STORAGE, STORAGES
from spectra.storages.stored import Factors
from spectra_data.errors import InputError

KEPT = 8e9
"""Most bytes of decompositions kept in memory between cells."""


class Bench:
    """A checkpoint's model with its scan, its texts and its decompositions.

    Parameters
    ----------
    setup
        The checkpoint, the experiment's `PerplexitySettings`, and the folder that keeps the scan.
    """

    def __init__(self, setup: Setup) -> None:
        self.source = Source(setup.checkpoint)
        self.settings: PerplexitySettings = setup.settings
        self.device = setup.device
        self.progress = setup.progress
        self.opened: Checkpoint = self.source.checkpoint
        self.candidates: Candidates = candidates_of(
            scan(setup.checkpoint, setup.folder / "scan.zarr")
        )
        self.model: Any = (
            load_whole(self.source).model.eval().requires_grad_(False).to(setup.device)
        )
        self.modules: dict[str, torch.nn.Linear] = {}
        for matrix in self.opened.matrices:
            module = self.model.get_submodule(matrix.name)
            if not isinstance(module, torch.nn.Linear):
                raise InputError(f"experiments need plain linear layers: {matrix.name} is not one")
            self.modules[matrix.name] = module
        self.originals: dict[str, torch.Tensor] = {
            name: module.weight.data for name, module in self.modules.items()
        }
        tokenizer = tokenizer_of(self.source, None)
        limit = (self.settings.windows + 1) * self.settings.seq_len
        self.text = text_tokens(self.settings.opened(self.settings.data), tokenizer, limit=limit)
        self._weightings: dict[str, Weightings] = {}
        self._factors: dict[tuple[str, str], Factors] = {}
        self._spectra: dict[str, Candidates] = {}
        self._outliers: dict[str, float] | None = None
        parameters = sum(weight.numel() for weight in self.originals.values())
        self._keep = 16 * parameters < KEPT

    def calibration_windows(self) -> torch.Tensor:
        """Tokens to calibrate on: (windows, length)."""
        return calibration_text(self.source, self.settings.calibrated(), self.device)[0]

    def allocated(self, method: str, *, storage: str = DEFAULT_STORAGE, **target: float) -> RankMap:
        """Rank map from the scan's spectra, for one target."""
        outliers = self.outliers() if "outliers" in METHODS[method].needs else None
        settings = AllocationSettings(method=method, storage=storage)
        return Maker(self.candidates, settings, outliers).map(Target.of(**target))

    def least_loss(self, way: str, budget: float, storage: str, align: int) -> RankMap:
        """Rank map of least expected loss, by a way to weigh errors."""
        if way not in self._spectra:
            self._spectra[way] = loss_candidates(
                self.opened,
                list(self.opened.matrices),
                ModelState(self.model),
                self.weightings(way),
                self.progress,
            )
        return map_of_least_loss(self._spectra[way], budget, storage, align)

    def outliers(self) -> dict[str, float]:
        """OWL's shares of outliers, by block."""
        if self._outliers is None:
            windows = self.calibration_windows()
            batches = torch.split(windows, self.settings.batch_size)
            self._outliers = outlier_shares(self.model, batches)
        return self._outliers

    def weightings(self, way: str) -> Weightings:
        """Weightings of errors by a way: a method, or ``method on data``."""
        if way not in self._weightings:
            method, _, data = way.partition(" on ")
            if method == "svd":
                self._weightings[way] = plain_weightings()
            else:
                settings = Settings(method, self.settings.calibrated(data or None))
                self._weightings[way] = calibrate(self.source, settings, self.device, self.progress)
        return self._weightings[way]

    def truncated(self, way: str, rank_map: RankMap, *, all_ranks: bool) -> dict[str, Factors]:
        """Factors of the matrices that the map truncates and factors.

        With `all_ranks`, also of truncated matrices that the map stores whole, as experiments at a
        given ERR need.
        """
        wanted = [m for m in rank_map.modules if m.factored or (all_ranks and m.rank < m.full_rank)]
        found = {}
        for done, module in enumerate(wanted):
            found[module.name] = self._truncated(way, module.name, module.rank)
            self.progress(f"{way}: matrices decomposed", done + 1, len(wanted))
        return found

    @contextlib.contextmanager
    def replaced(self, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Replace weights of the model for a while."""
        for name, weight in weights.items():
            original = self.originals[name]
            self.modules[name].weight.data = weight.to(original.device, original.dtype)
        try:
            yield
        finally:
            for name, module in self.modules.items():
                module.weight.data = self.originals[name]

    def products(
        self, factors: Mapping[str, Factors], storage: str = DEFAULT_STORAGE
    ) -> dict[str, torch.Tensor]:
        """Products of stored factors: rounded as in a file, then multiplied."""
        dtype = require_dtype(self.settings.stored)
        stored = STORAGES[storage].stored()
        return {name: stored.encode(one, dtype).float().product() for name, one in factors.items()}

    def perplexity(self) -> float:
        """Perplexity of the model with its current weights."""
        found = perplexity(
            self.model,
            self.text,
            seq_len=self.settings.seq_len,
            windows=self.settings.windows,
            batch_size=self.settings.batch_size,
            progress=lambda done, count: self.progress("windows", done, count),
        )
        if found.windows < self.settings.windows:
            raise InputError(
                f"{self.settings.data} has {found.windows} windows of {self.settings.seq_len} "
                f"tokens, not {self.settings.windows}: use more text, or fewer --windows"
            )
        return found.perplexity

    def _truncated(self, way: str, name: str, rank: int) -> Factors:
        weighting = self.weightings(way).of
        if not self._keep:
            return weighting(name).truncated(self.originals[name], rank)
        key = (way, name)
        if key not in self._factors:
            original = self.originals[name]
            whole = weighting(name).truncated(original, min(original.shape))
            self._factors[key] = Factors(whole.left.float(), whole.right.float())
        kept = self._factors[key]
        return Factors(kept.left[:, :rank], kept.right[:rank])
