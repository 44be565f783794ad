"""A store's description of its run: model, software, options, and what is not in it."""

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from spectra.matrices import Skipped, unwrapped
from spectra.recording.micro_batches import Probe
from spectra.recording.probe import probe_precision, probe_sha256
from spectra.store.layout import Contents
from spectra.store.schedule import Schedule

SOFTWARE = ("spectra-dynamics", "torch", "transformers", "numpy", "zarr")


def describe(
    model: torch.nn.Module,
    probe: Probe | None,
    contents: Contents,
    schedule: Schedule,
    seed: int,
    skipped: Sequence[Skipped],
    attrs: Mapping[str, Any],
) -> dict[str, Any]:
    """The store's attributes."""
    inner = unwrapped(model)
    config: Any = getattr(inner, "config", None)
    described = {
        "name": attrs.get("model", type(inner).__name__),
        "class": type(inner).__name__,
        "parameters": sum(p.numel() for p in inner.parameters()),
    }
    if hasattr(config, "to_json_string"):
        described["config"] = json.loads(config.to_json_string(use_diff=False))
    return {
        **attrs,
        "kind": "run",
        "model": described,
        "config": attrs.get("config"),
        "software": {"python": platform.python_version()} | software_versions(),
        "probe_sha256": probe_sha256(probe) if probe is not None else None,
        "probe_precision": probe_precision(inner) if probe is not None else None,
        "contents": contents.to_dict(),
        "schedule": schedule.to_dict(),
        "sketch_seed": seed,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "skipped": [{"name": s.name, "reason": s.reason} for s in skipped],
    }


def software_versions() -> dict[str, str]:
    """Versions of the packages that a store's content depends on."""
    found = {}
    for package in SOFTWARE:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
