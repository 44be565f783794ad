"""Forecasts of commands, printed."""

import json
import sys

from spectra.forecasting.forecast import Forecast


def show(forecast: Forecast, out: object, as_json: bool, device: str = "cpu") -> int:
    """Print a forecast, in words or as one JSON object; return the exit status.

    Parameters
    ----------
    forecast
        Forecast of a command.
    out
        Where the command writes; None for nowhere.
    as_json
        Whether to print JSON.
    device
        Device of the command, if its costs were measured on the CPU alone.
    """
    if device != "cpu":
        print(f"times are those of the CPU, not of {device}", file=sys.stderr)
    if as_json:
        print(json.dumps(forecast.to_dict()))
        return 0
    for line in forecast.lines(out):
        print(line)
    return 0
