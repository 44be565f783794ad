"""How each calibrated method weighs the error of a matrix: what it measures, and makes of it.

An entry says which second moments of a layer it needs, and turns them into the root R of the
shorter side's weight and the middle M of `decompose`. A weight has outputs (rows) and inputs
(cols); of a square one, the side is taken that needs less.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from spectra.calibration.statistics import (
    CARRIED,
    GRADIENTS,
    INPUTS,
    MAGNITUDES,
    OUTPUTS,
    BlockStatistics,
    add_products,
    whole_of,
)
from spectra.compression.settings import Settings
from spectra.compression.truncation import Root, covariance_root, scale_root

UNSEEN = 1e-5
"""Least shrinkage of the longer side's covariance.

In directions that no token shows, the weight itself then counts more than rounding in float32.
"""
AT_ONCE = 512
"""Columns of a weight whose products are summed in float32; the sums are in float64."""


@dataclass(frozen=True)
class Layer:
    """A linear layer in its block, with what was measured of it."""

    name: str
    """Name within the block."""
    weight: torch.Tensor
    """(rows, cols)."""
    statistics: BlockStatistics


class WeighingMethod(ABC):
    """A method that weighs errors by statistics on text."""

    backward: bool = False
    """Whether it needs the loss's gradients."""

    @abstractmethod
    def takes_outputs(self, rows: int, cols: int) -> bool:
        """Whether a weight of these sides is decomposed over its outputs."""

    @abstractmethod
    def wanted(self, rows: int, cols: int) -> Collection[str]:
        """Second moments that are needed of a layer."""

    def root_numbers(self, of_outputs: bool, side: int) -> int:
        """Numbers in the root of a side's weight; half of a triangular one is kept."""
        return side * (side + 1) // 2

    @abstractmethod
    def root(self, layer: Layer, settings: Settings) -> Root | None:
        """Root of the shorter side's weight; None for the identity.

        Over inputs, it is the same for all layers that read the same ones.
        """

    @abstractmethod
    def middle(self, layer: Layer, settings: Settings) -> torch.Tensor:
        """The other side's weight, brought through the layer: (side, side), in float64."""


class Asvd(WeighingMethod):
    """Inputs scaled by their mean size (Yuan et al. 2023)."""

    def takes_outputs(self, rows: int, cols: int) -> bool:
        """See `WeighingMethod`."""
        return rows <= cols

    def wanted(self, rows: int, cols: int) -> Collection[str]:
        """See `WeighingMethod`."""
        return {MAGNITUDES}

    def root_numbers(self, of_outputs: bool, side: int) -> int:
        """See `WeighingMethod`."""
        return 0 if of_outputs else side

    def root(self, layer: Layer, settings: Settings) -> Root | None:
        """See `WeighingMethod`."""
        return None if self.takes_outputs(*layer.weight.shape) else self._scale(layer, settings)

    def middle(self, layer: Layer, settings: Settings) -> torch.Tensor:
        """See `WeighingMethod`."""
        weight = layer.weight.double()
        if not self.takes_outputs(*weight.shape):
            return weight.mT @ weight
        scaled = weight * self._scale(layer, settings).root.to(weight.device)
        return scaled @ scaled.mT

    def _scale(self, layer: Layer, settings: Settings) -> Root:
        magnitude = layer.statistics.of(layer.name).magnitude
        return scale_root(magnitude, settings.asvd_exponent)


class Whiten(WeighingMethod):
    """Inputs whitened (Wang et al. 2024, "SVD-LLM")."""

    def takes_outputs(self, rows: int, cols: int) -> bool:
        """See `WeighingMethod`."""
        return rows <= cols

    def wanted(self, rows: int, cols: int) -> Collection[str]:
        """See `WeighingMethod`."""
        return {OUTPUTS if self.takes_outputs(rows, cols) else INPUTS}

    def root_numbers(self, of_outputs: bool, side: int) -> int:
        """See `WeighingMethod`."""
        return 0 if of_outputs else super().root_numbers(of_outputs, side)

    def root(self, layer: Layer, settings: Settings) -> Root | None:
        """See `WeighingMethod`."""
        if self.takes_outputs(*layer.weight.shape):
            return None
        covariance = layer.statistics.of(layer.name).covariance
        return covariance_root(covariance, shrinkage=settings.shrink)

    def middle(self, layer: Layer, settings: Settings) -> torch.Tensor:
        """See `WeighingMethod`."""
        if not self.takes_outputs(*layer.weight.shape):
            weight = layer.weight.double()
            return weight.mT @ weight
        return _through(layer, settings)


class Fisher(WeighingMethod):
    """Inputs and the loss's gradients whitened: the expected increase of the loss."""

    backward = True

    def takes_outputs(self, rows: int, cols: int) -> bool:
        """See `WeighingMethod`: siblings share the root of their inputs."""
        return rows < cols

    def wanted(self, rows: int, cols: int) -> Collection[str]:
        """See `WeighingMethod`."""
        return {OUTPUTS, GRADIENTS} if self.takes_outputs(rows, cols) else {INPUTS, CARRIED}

    def root(self, layer: Layer, settings: Settings) -> Root | None:
        """See `WeighingMethod`."""
        of_outputs = self.takes_outputs(*layer.weight.shape)
        known = layer.statistics
        moments = known.gradients[layer.name] if of_outputs else known.of(layer.name)
        return covariance_root(moments.covariance, shrinkage=settings.shrink)

    def middle(self, layer: Layer, settings: Settings) -> torch.Tensor:
        """See `WeighingMethod`."""
        return _through(layer, settings)


WEIGHING: Mapping[str, WeighingMethod] = {"asvd": Asvd(), "whiten": Whiten(), "fisher": Fisher()}


def _through(layer: Layer, settings: Settings) -> torch.Tensor:
    """The longer side's shrunk covariance, through the weight: :math:`WCW^T` or :math:`W^TGW`.

    Of shrinkage s, it is the moment times 1 - s, and the weight's own products times s and the mean
    diagonal entry of the covariance.
    """
    known, s = layer.statistics, max(settings.shrink, UNSEEN)
    of_outputs = layer.name in known.outputs
    if of_outputs:
        moments, far = known.outputs[layer.name], known.of(layer.name)
    else:
        moments, far = known.carried[layer.name], known.gradients[layer.name]
    seen = moments.covariance
    own = torch.zeros_like(seen)
    weight = layer.weight.float()
    for part in torch.split(weight.mT if of_outputs else weight, AT_ONCE):
        add_products(own, part)
    return (1 - s) * seen + s * float(far.variances.mean()) * whole_of(own)
