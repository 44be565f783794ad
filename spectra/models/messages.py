"""The messages of transformers while it loads, reduced to one line."""

import contextlib
from typing import Any

from spectra_data.errors import InputError, first_line


def silence_library_bars() -> None:
    """Turn off the progress bars that transformers draws for every shard."""
    from transformers.utils import logging

    untyped: Any = logging
    untyped.disable_progress_bar()


@contextlib.contextmanager
def loading(address: str) -> Any:
    """Turn an error of transformers while loading into one line.

    Raises
    ------
    InputError
        For any error that transformers raises.
    """
    from transformers.utils import logging

    bars: Any = logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # a malformed file breaks its code anywhere
        raise InputError(f"cannot load {address}: {first_line(error)}") from error
    finally:
        if shown:
            bars.enable_progress_bar()
