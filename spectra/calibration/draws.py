"""Tokens drawn from a model's predictions, by uniform numbers that depend on nothing else.

So what is drawn for a window is the same in any batch and on any device, up to rounding.
"""

import torch

from spectra_data.errors import InputError


def drawn(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """A token for each row: the first whose summed probability exceeds a share of the whole.

    Parameters
    ----------
    probabilities
        (rows, vocabulary), of any positive sum.
    uniform
        The shares, from 0 to below 1: (rows,), in float64.

    Returns
    -------
    (rows,), on the CPU.

    Raises
    ------
    InputError
        When the probabilities are not finite.
    """
    summed = probabilities.cpu().cumsum(dim=-1, dtype=torch.float64)
    if not torch.isfinite(summed[:, -1]).all():
        raise InputError("the model's predictions are not finite: `spectra scan` finds why")
    at = uniform[:, None] * summed[:, -1:]
    return torch.searchsorted(summed, at, right=True)[:, 0].clamp(max=summed.shape[1] - 1)
