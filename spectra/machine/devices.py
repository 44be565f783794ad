"""The device that work runs on."""

from typing import TYPE_CHECKING

from spectra_data.errors import InputError, first_line

if TYPE_CHECKING:
    import torch

AUTO = "auto"


def device_of(name: str | None = None) -> "torch.device":
    """A device by its name; for ``auto`` or None, CUDA if available, else the CPU.

    Raises
    ------
    InputError
        When there is no such device, or it cannot be used here.
    """
    import torch

    if name is None or name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"no device {name!r}: name cpu, cuda, or auto") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no CUDA device here: leave out --device, or name cpu")
    try:
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} cannot be used here: {first_line(error)}") from error
    return device
