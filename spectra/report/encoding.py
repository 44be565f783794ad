"""Arrays as text: 16 bits per number, in base64.

Codes of cosines are spaced evenly in [-1, 1]; singular values are stored by their logarithms, with
a relative error under 0.05 % over eight decades.
"""

import base64
import hashlib
import json
from typing import Any

import numpy as np
import numpy.typing as npt

Encoded = dict[str, Any]


def encode_logarithms(values: npt.NDArray[Any]) -> Encoded:
    """Magnitudes as 16-bit logarithms: 0 is missing, 1 is zero, 2..65535 span least to greatest."""
    positive = np.isfinite(values) & (values > 0)
    logs = np.log(values, where=positive, out=np.zeros(values.shape))
    low, high = (logs[positive].min(), logs[positive].max()) if positive.any() else (0.0, 0.0)
    span = max(high - low, 1e-12)
    codes = np.where(positive, 2 + np.round((logs - low) / span * 65533), 0)
    codes[values == 0] = 1
    return {
        "shape": list(values.shape),
        "low": float(low),
        "span": float(span),
        "codes": as_base64(codes.astype("<u2")),
    }


def encode_cosines(values: npt.NDArray[Any]) -> Encoded:
    """Cosines as 16-bit integers: 0 is missing, 1..65535 span -1 to 1."""
    codes = np.where(np.isfinite(values), 1 + np.round((values + 1) / 2 * 65534), 0)
    return {"shape": list(values.shape), "codes": as_base64(codes.astype("<u2"))}


def hash_of_script(script: str) -> str:
    """A script's hash, by which a Content-Security-Policy lets it run."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def as_script(content: Any) -> str:
    r"""JSON that can stand in a script element, with no text that a page's parser acts on.

    The parser ends the script at ``</script>``, and ``<!--<script>`` keeps it from seeing the end.

    >>> as_script("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(content, allow_nan=False)  # U+2028, U+2029 are escaped already
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def as_base64(array: npt.NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
