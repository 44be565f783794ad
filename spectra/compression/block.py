"""The matrices of a block that calibration went through, decomposed and written."""

import contextlib
from collections.abc import Collection, Iterator

import torch

from spectra.calibration.passes import Seen
from spectra.calibration.statistics import linear_layers
from spectra.compression.methods import Layer, WeighingMethod
from spectra.compression.scratch import Scratch
from spectra.compression.settings import Settings
from spectra.compression.truncation import Root, decompose
from spectra.machine.cores import available_cores, single_threaded_workers
from spectra_data.errors import InputError

LARGE_SIDE = 2048
"""Shorter side from which one matrix on all cores is as fast as one on each."""


def decompose_block(
    seen: Seen, names: Collection[str], method: WeighingMethod, settings: Settings, scratch: Scratch
) -> None:
    """Decompose matrices of a block by its statistics, and write them to scratch.

    Parameters
    ----------
    seen
        The block, with its weights and statistics.
    names
        Names of the matrices.
    method, settings
        Method of weighting, and its settings.
    scratch
        Where decompositions are written.

    Raises
    ------
    InputError
        When a matrix or its statistics are not finite, with its name.
    """
    layers = dict(_reached(seen, names, method))
    roots: dict[str, Root | None] = {}
    for name, layer in layers.items():
        key = _root_key(seen, layer, method)
        if key not in roots:
            with _named(name):
                roots[key] = method.root(layer, settings)
            if (root := roots[key]) is not None:
                scratch.save_root(key, root)

    def write(name: str) -> None:
        layer = layers[name]
        key = _root_key(seen, layer, method)
        with _named(name):
            of_outputs = method.takes_outputs(*layer.weight.shape)
            middle = method.middle(layer, settings) * seen.statistics.share(layer.name)
            side = decompose(middle, roots[key], of_outputs=of_outputs)
            scratch.save(name, side, key if roots[key] is not None else None)

    small = [name for name, layer in layers.items() if _takes_a_core(layer.weight)]
    for name in layers:
        if name not in small:
            write(name)
    with single_threaded_workers(available_cores()) as pool:
        for _ in pool.map(write, small):
            pass
    shared = [key for key, root in roots.items() if root is not None]
    scratch.finish(seen.name, layers, roots=shared)


def _reached(
    seen: Seen, names: Collection[str], method: WeighingMethod
) -> Iterator[tuple[str, Layer]]:
    """The matrices that tokens went through, and came back through if the method needs that."""
    known = seen.statistics
    layers = linear_layers(seen.block)
    for name in names:
        inner = name.removeprefix(f"{seen.name}.")
        if inner in known.groups and (inner in known.gradients or not method.backward):
            yield name, Layer(inner, layers[inner].weight.detach(), known)


def _root_key(seen: Seen, layer: Layer, method: WeighingMethod) -> str:
    """Name of a layer's root: over inputs, one for all layers that read the same."""
    if method.takes_outputs(*layer.weight.shape):
        return f"{seen.name}.{layer.name}"
    return f"{seen.name}.inputs-{seen.statistics.groups[layer.name]}"


def _takes_a_core(weight: torch.Tensor) -> bool:
    return min(weight.shape) < LARGE_SIDE and weight.device.type == "cpu"


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Put a matrix's name in front of errors."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
