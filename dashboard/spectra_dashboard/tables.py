"""Rank tables in the form sent to the browser: once, so that sliders need no server."""

import base64
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from spectra.allocation.rankmap import RankMap

NUMBERS = ("err", "threshold", "budget", "parameters", "bytes", "lrc")


def of_path(path: xr.Dataset) -> dict[str, Any]:
    """A compression path: numbers by target; ranks, storage and errors by (target, matrix)."""
    full = np.minimum(path["rows"].to_numpy(), path["cols"].to_numpy())
    return {
        "targets": path["target"].to_numpy().round(6).tolist(),
        "lrcFactor": float(path.attrs["lrc_factor"]),
        "full": full.tolist(),
        "meanError": (path["summed_error"].to_numpy() / len(full)).tolist(),
        "rank": packed(path["rank"].to_numpy(), "<u4"),
        "factored": packed(path["factored"].to_numpy(), "u1"),
        "error": packed(np.round(path["relative_error"].to_numpy() * 65535).clip(0, 65535), "<u2"),
        **{name: _plain(path[name].to_numpy()) for name in NUMBERS},
    }


def of_map(rank_map: RankMap, names: list[str]) -> dict[str, Any]:
    """A finished map in the same form, with one target; matrices in the order of `names`."""
    modules = {module.name: module for module in rank_map.modules}
    ordered = [modules[name] for name in names]
    errors = np.array([module.relative_error for module in ordered])
    return {
        "targets": [0.0],
        "lrcFactor": float(rank_map.options.get("lrc_factor", 0.5)),
        "full": [module.full_rank for module in ordered],
        "meanError": [float(errors.mean())],
        "rank": packed(np.array([[module.rank for module in ordered]]), "<u4"),
        "factored": packed(np.array([[module.factored for module in ordered]]), "u1"),
        "error": packed(np.round(errors[None] * 65535).clip(0, 65535), "<u2"),
        "err": [rank_map.err],
        "threshold": [rank_map.threshold],
        "budget": [rank_map.budget],
        "parameters": [rank_map.parameters],
        "bytes": [rank_map.bytes],
        "lrc": [len(rank_map.lrc)],
    }


def packed(values: npt.NDArray[Any], kind: str) -> str:
    """Numbers as bytes in base64."""
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode()


def _plain(values: npt.NDArray[Any]) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]
