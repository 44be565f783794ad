"""Sketches of gradients: random projections short enough to keep at every snapshot.

Count sketch (Charikar, Chen, Farach-Colton 2002): every entry of the gradient goes to one of d
components with a random sign, both drawn once from a seed. Inner products of sketches are unbiased
estimates of the inner products of the gradients; the cosine of two sketches errs with a standard
deviation of about (1 - c^2) / sqrt(d), where c is the cosine. It costs one pass over the gradient,
and the same seed and shape give comparable sketches in any run.
"""

from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass(frozen=True)
class CountSketch:
    """A fixed random projection of matrices to `components` numbers."""

    components: int = 4096
    seed: int = 0
    _buckets: dict[tuple[tuple[int, ...], torch.device], torch.Tensor] = field(
        default_factory=dict, repr=False
    )

    def __call__(self, matrix: torch.Tensor) -> torch.Tensor:
        """Project a matrix of any shape, on its device: (components,), in float32 or wider."""
        buckets = self._buckets_of(matrix)
        matrix = matrix if matrix.element_size() >= 4 else matrix.float()
        # twice the components, one half for each sign, saves a product with the signs
        sums = matrix.new_zeros(2 * self.components)
        sums.scatter_add_(0, buckets.long(), matrix.reshape(-1))
        return sums[: self.components] - sums[self.components :]

    def _buckets_of(self, matrix: torch.Tensor) -> torch.Tensor:
        shape = tuple(matrix.shape)
        key = shape, matrix.device
        if key not in self._buckets:
            draw = np.random.default_rng([self.seed, *shape])
            buckets = draw.integers(0, 2 * self.components, size=matrix.numel(), dtype=np.int32)
            self._buckets[key] = torch.from_numpy(buckets).to(matrix.device)
        return self._buckets[key]
