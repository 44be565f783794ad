"""One HTML file with all figures of a store, that opens without a network.

The page holds plotly's script, the figures' templates (from `spectra.figures`, so the report and
the dashboard look alike) and the data of every matrix; choosing other matrices is done in the page.
Data is kept small: cosines as 16-bit integers, singular values as 16-bit logarithms (relative error
under 0.05 % over eight decades), and, where all of it would not fit `PAYLOAD_BYTES`, fewer
snapshots, evenly spaced and said so in the page.
"""

import base64
import html
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from data.errors import InputError
from spectra.analysis.similarity import cosine_similarity
from spectra.figures.dynamics import FIRST_VALUES, cosine_heatmap, spectrum_heatmap
from spectra.figures.training import loss_curve
from spectra.store.durable import write_file
from spectra.store.reader import open_store

PAYLOAD_BYTES = 3_600_000
"""Of array data, before base64 adds a third; plotly's script takes about 4.9 MB of the 10 MB."""
LOSS_POINTS = 4_000
SPECTRA = ("gradient", "weight")

Payload = dict[str, Any]


def write_report(store: str | Path, out: str | Path) -> None:
    """Write the report of a store.

    Parameters
    ----------
    store
        A run or a scan.
    out
        The file to write; it replaces an earlier one only when it is whole.

    Raises
    ------
    InputError
        When there is no such store, it has no snapshot yet, or `out` cannot be written.
    """
    out = Path(out).resolve()  # a link stays a link
    if out.exists() and not out.is_file():
        raise InputError(f"cannot write {out}: it is there and is no file")
    run = open_store(store)
    try:
        page = report_html(run, name=str(store))
    except InputError:
        raise
    except Exception as error:  # a broken chunk raises whatever its codec raises
        raise InputError(
            f"{store} cannot be read ({error}): spectra verify says what is wrong with it"
        ) from error
    try:
        write_file(out, page.encode())
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error


def report_html(run: xr.DataTree, *, name: str) -> str:
    """The report of an opened store as one page; `name` says where the store lies."""
    if run["spectra"].sizes["step"] == 0:
        raise InputError("the store has no snapshot yet: the first one is taken at the first step")
    from plotly.offline import get_plotlyjs

    assets = files("spectra") / "assets"
    fields = {
        "title": html.escape(_title(run, name)),
        "facts": _facts_html(run, name),
        "style": (assets / "report.css").read_text(),
        "plotly": get_plotlyjs(),
        # "</" would end the script element
        "payload": json.dumps(payload(run), allow_nan=False).replace("</", "<\\/"),
        "script": (assets / "report.js").read_text(),
    }
    # in one pass, so that nothing in a run's own texts is taken for a field
    return re.sub(
        r"\{\{(\w+)\}\}", lambda match: fields[match[1]], (assets / "report.html").read_text()
    )


def payload(run: xr.DataTree) -> Payload:
    """Everything that the page's script draws from."""
    spectra = run["spectra"].to_dataset()
    kinds = [kind for kind in SPECTRA if kind in spectra]
    has_cosine = "sketches" in run.children
    rows = _thinned(spectra.sizes["step"], _bytes_per_matrix(spectra, kinds, has_cosine))
    steps = spectra["step"].to_numpy()[rows]
    names = spectra["matrix"].to_numpy().tolist()
    arrays: dict[str, Any] = {}
    for kind in kinds:
        values = spectra[kind].isel(step=rows, index=slice(FIRST_VALUES)).to_numpy()
        arrays[kind] = [encode_logarithms(values[:, i]) for i in range(len(names))]
    error = None
    if has_cosine:
        cosine = cosine_similarity(run)
        error = cosine.attrs["standard_error"]
        matrix_first = cosine.isel(step=rows, step_=rows).transpose("matrix", ...).to_numpy()
        arrays["cosine"] = [encode_cosines(c) for c in matrix_first]
    return {
        "matrices": [
            {
                "name": str(name),
                "layer": int(layer),
                "role": str(role),
                "shape": [int(r), int(c)],
            }
            for name, layer, role, r, c in zip(
                *(spectra[v].to_numpy() for v in ("matrix", "layer", "role", "rows", "cols")),
                strict=True,
            )
        ],
        "chosen": default_matrices(spectra),
        "steps": steps.tolist(),
        "left_out": spectra.sizes["step"] - len(rows),
        "arrays": arrays,
        "templates": _templates(steps, kinds, error),
        "loss": _loss_figure(run),
    }


def default_matrices(spectra: xr.Dataset) -> list[str]:
    """As the paper has it: q and k of the first layer, down and up of a middle layer.

    Where there are no such roles, the first four matrices.
    """
    layers = spectra["layer"].to_numpy()
    roles = spectra["role"].to_numpy()
    names = spectra["matrix"].to_numpy()
    present = sorted(set(layers.tolist()))
    first, middle = present[0], present[len(present) // 2]
    wanted = [(first, "q"), (first, "k"), (middle, "down"), (middle, "up")]
    found = [str(names[(layers == layer) & (roles == role)][0]) for layer, role in wanted
             if ((layers == layer) & (roles == role)).any()]  # fmt: skip
    return found or names[:4].tolist()


def encode_logarithms(values: npt.NDArray[Any]) -> Payload:
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
        "codes": _base64(codes.astype("<u2")),
    }


def encode_cosines(values: npt.NDArray[Any]) -> Payload:
    """Cosines as 16-bit integers: 0 is missing, 1..65535 span -1 to 1."""
    codes = np.where(np.isfinite(values), 1 + np.round((values + 1) / 2 * 65534), 0)
    return {"shape": list(values.shape), "codes": _base64(codes.astype("<u2"))}


def _base64(array: npt.NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")


def _bytes_per_matrix(
    spectra: xr.Dataset, kinds: list[str], has_cosine: bool
) -> tuple[int, int, int]:
    """Matrices, and their bytes as linear and quadratic coefficients in the number of snapshots."""
    values = min(FIRST_VALUES, spectra.sizes["index"])
    return spectra.sizes["matrix"], 2 * values * len(kinds), 2 * has_cosine


def _thinned(count: int, coefficients: tuple[int, int, int]) -> npt.NDArray[np.int64]:
    """Rows that fit the payload: all, or evenly spaced ones with the first and the last."""
    matrices, linear, quadratic = coefficients
    kept = count
    while kept > 2 and matrices * (linear * kept + quadratic * kept**2) > PAYLOAD_BYTES:
        kept -= 1
    return np.unique(np.linspace(0, count - 1, kept).round().astype(np.int64))


def _templates(
    steps: npt.NDArray[np.int64], kinds: list[str], standard_error: float | None
) -> Payload:
    """Each figure once, without data; the page's script fills in a matrix."""
    empty = np.zeros((len(steps), 1))
    figures = {kind: spectrum_heatmap(empty, steps, title="") for kind in kinds}
    if standard_error is not None:
        square = np.zeros((len(steps), len(steps)))
        figures["cosine"] = cosine_heatmap(square, steps, title="", standard_error=standard_error)
    templates = {name: json.loads(figure.to_json()) for name, figure in figures.items()}
    for template in templates.values():
        del template["data"][0]["z"]
    return templates


def _loss_figure(run: xr.DataTree) -> Payload | None:
    if "train" not in run.children or not np.isfinite(run["train"]["loss"]).any():
        return None
    train = run["train"].to_dataset().compute()
    rows = np.unique(
        np.linspace(0, train.sizes["train_step"] - 1, LOSS_POINTS).round().astype(np.int64)
    )
    evaluated = np.flatnonzero(np.isfinite(train["validation_loss"].to_numpy()))
    train = train.isel(train_step=np.union1d(rows, evaluated))
    figure = loss_curve(
        train["train_step"].to_numpy(),
        train["loss"].to_numpy(),
        train["validation_loss"].to_numpy(),
    )
    return dict(json.loads(figure.to_json()))


def _title(run: xr.DataTree, name: str) -> str:
    model = run.attrs.get("model") or {}
    return f"{model.get('name', name)}: gradients and weights over training"


def _facts_html(run: xr.DataTree, name: str) -> str:
    rows = "".join(
        f"<div><dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd></div>"
        for term, text in facts(run, name).items()
    )
    config = run.attrs.get("config")
    details = (
        f"<details><summary>Configuration</summary><pre>"
        f"{html.escape(json.dumps(config, indent=2))}</pre></details>"
        if config
        else ""
    )
    return f"<dl>{rows}</dl>{details}"


def facts(run: xr.DataTree, name: str) -> dict[str, str]:
    """What run this is, in words: shown at the head of the page."""
    attrs, spectra = run.attrs, run["spectra"]
    model, config = attrs.get("model") or {}, attrs.get("config")
    steps = spectra["step"].to_numpy()
    found = {"Store": name}
    if "name" in model:
        count = f", {model['parameters']:,} parameters" if "parameters" in model else ""
        found["Model"] = f"{model['name']}{count}"
    if isinstance(config, dict) and config.get("data"):
        found["Data"] = str(config["data"])
    matrices = spectra.sizes["matrix"]
    found["Recorded"] = (
        f"{len(steps)} snapshots of {matrices} matrices, steps {steps[0]:,} to {steps[-1]:,}"
    )
    if "train" in run.children and run["train"].sizes["train_step"]:
        train = run["train"].to_dataset().compute()
        loss = train["loss"].to_numpy()
        if np.isfinite(loss).any():
            found["Training loss"] = f"{loss[np.isfinite(loss)][0]:.3f} to {loss[-1]:.3f}"
        validation = train["validation_loss"].to_numpy()
        if np.isfinite(validation).any():
            last = float(validation[np.isfinite(validation)][-1])
            found["Validation"] = f"loss {last:.3f}, perplexity {np.exp(last):.2f}"
        tokens = train["tokens"].to_numpy()
        if np.isfinite(tokens).any():
            found["Tokens"] = f"{int(np.nanmax(tokens)):,}"
    software = attrs.get("software") or {}
    found["Made"] = f"{attrs.get('created', 'at an unknown time')}, " + ", ".join(
        f"{package} {version}" for package, version in software.items()
    )
    if probe := attrs.get("probe_sha256"):
        found["Probe batch"] = f"sha256 {probe[:16]}…"
    return found
