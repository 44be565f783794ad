"""Low-rank layers in a model, and the linear layers that they replace."""

import torch

from spectra.checkpoint.spectra_config import SpectraConfig
from spectra.models.parts import put_together, take_apart
from spectra.storages.layer import CompressedLinear, put
from spectra.storages.registry import STORAGES
from spectra_data.errors import InputError


def put_layers(model: torch.nn.Module, config: SpectraConfig) -> None:
    """Replace the layer of every factored matrix with an empty low-rank one.

    Layers that hold several matrices are taken apart first (`spectra.models.parts`).

    Raises
    ------
    InputError
        When the model has no such layer, or one of another shape.
    """
    try:
        take_apart(model, config.places)
    except (AttributeError, IndexError, RuntimeError) as error:
        raise InputError(f"the model lacks a layer of the rank map: {error}") from error
    layer = STORAGES[config.rank_map.storage].layer()
    for module in config.factored.values():
        try:
            old = model.get_submodule(module.name)
        except AttributeError:
            raise InputError(f"the rank map has {module.name}, the model does not") from None
        weight = getattr(old, "weight", None)
        sides = {(module.rows, module.cols), (module.cols, module.rows)}
        if not isinstance(weight, torch.Tensor) or tuple(weight.shape) not in sides:
            found = "no weight" if weight is None else f"a weight of {tuple(weight.shape)}"
            raise InputError(
                f"{module.name} has {found}, but the rank map says {module.rows} x {module.cols}"
            )
        put(
            model,
            module.name,
            layer(
                module.cols,
                module.rows,
                module.rank,
                bias=getattr(old, "bias", None) is not None,
                device=weight.device,
                dtype=weight.dtype,
            ),
        )


def put_dense(model: torch.nn.Module, config: SpectraConfig) -> None:
    """Undo `put_layers`: the layers of the model itself, with the products as weights.

    Raises
    ------
    InputError
        When a layer carries an adapter, which would be lost.
    """
    for name in config.places:
        layer = model.get_submodule(name)
        if type(layer) is not torch.nn.Linear and not isinstance(layer, CompressedLinear):
            raise InputError(
                f"{name} still has adapters: merge them (merge_and_unload), then make it dense"
            )
    for name, module in list(model.named_modules()):
        if isinstance(module, CompressedLinear):
            put(model, name, dense(module))
    put_together(model, config.places)


def dense(module: CompressedLinear, dtype: torch.dtype | None = None) -> torch.nn.Linear:
    """The dense linear layer that computes the same as a low-rank one."""
    product = module.product().detach()
    linear = torch.nn.Linear(
        module.in_features,
        module.out_features,
        bias=module.bias is not None,
        device=product.device,
        dtype=dtype or product.dtype,
    )
    linear.weight.data.copy_(product)
    if module.bias is not None:
        linear.bias.data.copy_(module.bias.detach())
    return linear
