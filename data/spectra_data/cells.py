"""Cells of CSV tables, in which no text is one that a spreadsheet would run as a formula."""

import re
from typing import Any

_STARTS = "=+\\-@\uff1d\uff0b\uff0d\uff20"
"""Characters that start a formula, also in full width."""
_FORMULA = re.compile(rf"^(?=[{_STARTS}\t\r\n])|(?<=[;\t\r\n])(?=[{_STARTS}])")
"""Where a formula could start: at the start of a cell, or of what some locale takes for one."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def inert(value: Any) -> Any:
    """A value for a CSV cell; a text that a spreadsheet would run is preceded by an apostrophe.

    Numbers are unchanged, also as text. A carriage return, at which pandas' writer would not
    quote, is escaped.

    >>> [inert(value) for value in ("=1+1", "-1.5e-3", -2.0, "model.layers.0", None)]
    ["'=1+1", '-1.5e-3', -2.0, 'model.layers.0', None]
    """
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    return _FORMULA.sub("'", value).replace("\r", "\\r")
