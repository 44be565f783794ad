"""Facts about the run of a report, in words."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr


def facts(run: xr.DataTree, name: str) -> dict[str, str]:
    """Facts about a run, by name; the head of the page shows them."""
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
    if attrs.get("kind") == "scan":
        accuracy = "approximately, with error bars" if "weight_error" in spectra else "exactly"
        stored = (model.get("config") or {}).get("gguf_formats") or [model.get("format", "")]
        found["Scanned"] = f"{matrices} matrices, {accuracy}, from {', '.join(stored)}"
    if attrs.get("kind") != "scan" or len(steps) > 1:
        found["Recorded"] = (
            f"{len(steps)} snapshots of {matrices} matrices, steps {steps[0]:,} to {steps[-1]:,}"
        )
    if left_out := attrs.get("skipped") if attrs.get("kind") == "scan" else None:
        found["Left out"] = _left_out(left_out)
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


def _left_out(skipped: Sequence[Mapping[str, str]]) -> str:
    counts = Counter(entry["reason"] for entry in skipped)
    return "; ".join(f"{count} tensors {reason}" for reason, count in counts.items())
