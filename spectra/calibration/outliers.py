"""Shares of outliers by block, which OWL needs: they are measured by the model on text."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from spectra.calibration.statistics import Inputs, input_of
from spectra.composites import Composite
from spectra.matrices import Matrix, Weight, find_matrices, unwrapped
from spectra.models.inputs import running
from spectra.models.loading import load_whole
from spectra.models.source import Source
from spectra_data.calibration import calibration_windows
from spectra_data.sources import TEXT_FIELD, open_source

MULTIPLE = 5.0
"""OWL's M."""


def outlier_shares(
    model: torch.nn.Module, batches: Iterable[torch.Tensor], *, multiple: float = MULTIPLE
) -> dict[str, float]:
    r"""Share of outliers in every block, by the block's path.

    An entry is an outlier if :math:`|W_{ij}| \|x_j\|_2` exceeds `multiple` times the mean of this
    over the block's matrices; :math:`\|x_j\|` runs over all tokens of the batches. Source:
    Yin et al. 2023, "Outlier Weighed Layerwise Sparsity". Stacked experts, which are not layers
    of their own, are left out.

    Parameters
    ----------
    model
        Causal language model; put into evaluation mode while this runs.
    batches
        Token ids, (sequences, length) each.
    multiple
        Factor over the mean above which an entry is an outlier.
    """
    inner = unwrapped(model)
    modules = {
        matrix: (module, weight)
        for matrix, weight in find_matrices(inner)[0].items()
        if (module := _module(inner, matrix, weight)) is not None
    }
    layers = {matrix: weight for matrix, (_, weight) in modules.items()}
    squares = {matrix: torch.zeros(matrix.cols, dtype=torch.float64) for matrix in layers}
    hooks = [
        module.register_forward_pre_hook(_adding(squares, matrix), with_kwargs=True)
        for matrix, (module, _) in modules.items()
    ]
    training = inner.training
    device = next(inner.parameters()).device
    try:
        inner.eval()
        with torch.no_grad():
            for batch in batches:
                with running(inner, batch):
                    inner(input_ids=batch.to(device))
    finally:
        inner.train(training)
        for hook in hooks:
            hook.remove()
    return _shares(layers, squares, multiple)


def outliers_on_text(
    checkpoint: str, data: str, *, windows: int, length: int, text_field: str = TEXT_FIELD
) -> dict[str, float]:
    """As `outlier_shares`, for a Hugging Face checkpoint on the first windows of a corpus.

    Raises
    ------
    InputError
        When the model, its tokenizer or the corpus cannot be opened.
    """
    source = Source(checkpoint)
    tokens = calibration_windows(
        open_source(data, text_field), source.tokenizer, windows=windows, length=length
    )
    model = load_whole(source).model
    return outlier_shares(model, [window[None] for window in torch.from_numpy(tokens)])


def _module(model: torch.nn.Module, matrix: Matrix, weight: Weight) -> torch.nn.Module | None:
    """The layer that applies a matrix; None if the matrix is part of a stack."""
    if isinstance(weight.parameter, Composite):
        return weight.parameter.module
    try:
        module = model.get_submodule(matrix.name)
    except AttributeError:
        return None
    return module if isinstance(module, torch.nn.Linear) else None


def _adding(squares: dict[Matrix, torch.Tensor], matrix: Matrix) -> Any:
    """A hook that adds the squared norms of a layer's inputs, by feature."""

    def add(_: torch.nn.Module, inputs: Inputs, named: Mapping[str, torch.Tensor]) -> None:
        tokens = input_of(inputs, named).detach().reshape(-1, matrix.cols)
        squares[matrix] += tokens.double().square().sum(dim=0).cpu()

    return add


def _shares(
    layers: dict[Matrix, Weight], squares: dict[Matrix, torch.Tensor], multiple: float
) -> dict[str, float]:
    blocks: dict[str, list[Matrix]] = defaultdict(list)
    for matrix in layers:
        blocks[matrix.block].append(matrix)
    found = {}
    for block, matrices in blocks.items():
        entries = sum(matrix.rows * matrix.cols for matrix in matrices)
        total = sum(float(_scores(layers[m], squares[m]).sum()) for m in matrices)
        limit = multiple * total / entries
        above = sum(int((_scores(layers[m], squares[m]) > limit).sum()) for m in matrices)
        found[block] = above / entries
    return found


def _scores(weight: Weight, squares: torch.Tensor) -> torch.Tensor:
    value = weight.value
    return value.double().abs() * squares.sqrt().to(value.device)
