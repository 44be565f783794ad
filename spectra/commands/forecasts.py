"""Forecasts of commands, printed."""

import json

from spectra.forecasting.forecast import Forecast


def show(forecast: Forecast, out: object, as_json: bool) -> int:
    """Print a forecast, in words or as one JSON object; return the exit status."""
    if as_json:
        print(json.dumps(forecast.to_dict()))
        return 0
    for line in forecast.lines(out):
        print(line)
    return 0
