"""Exact cosines of 50 snapshots of llama_60m's gradients, beside reading the same bytes.

2.5 GB of gradients, written for the purpose into a temporary folder. `read, decoded` is zarr's own
reading of the same arrays, a snapshot at a time; `files` the bare bytes of the same files. The
files are read once before each run, so that all of it comes from the page cache.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr

import spectra
from spectra.matrices import Matrix
from spectra.store.layout import Contents, Layout
from spectra.store.writer import StoreWriter
from spectra_pretrain.presets import PRESETS
from tests.benchmarks.timing import seconds_once

SNAPSHOTS = 50


def run() -> list[dict[str, object]]:
    """Write the gradients, then time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zarr"
        gigabytes = write(path)
        opened = spectra.open(path)
        root = zarr.open_group(path, mode="r")["gradients"]

        def exact() -> None:
            spectra.cosine_similarity(opened, "exact").compute()

        def decoded() -> None:
            for _, group in root.groups():
                for step in range(SNAPSHOTS):
                    group["gradient"][step]

        def files() -> None:
            for file in path.glob("gradients/*/gradient/c/**/*"):
                if file.is_file():
                    file.read_bytes()

        def cached(work: Callable[[], None]) -> float:
            runs = []
            for _ in range(3):
                files()
                runs.append(seconds_once(work))
            return statistics.median(runs)

        reading = cached(decoded)
        seconds = {
            "exact cosines": cached(exact),
            "read, decoded": reading,
            "files": cached(files),
            "sketched cosines": cached(lambda: spectra.cosine_similarity(opened).compute()),
        }
    return [
        {
            "what": what,
            "seconds": value,
            "GB/s": gigabytes / value,
            "over reading": value / reading,
        }
        for what, value in seconds.items()
    ]


def write(path: Path) -> float:
    """Gradients that turn slowly; returns their gigabytes."""
    size = PRESETS["llama_60m"]
    h, w = size.hidden, size.intermediate
    shapes = {"q": (h, h), "k": (h, h), "v": (h, h), "o": (h, h), "gate": (w, h), "up": (w, h)}
    shapes["down"] = (h, w)
    matrices = tuple(
        Matrix(f"model.layers.{layer}.{role}", layer, role, *shape)
        for layer in range(size.layers)
        for role, shape in shapes.items()
    )
    contents = Contents(("gradient",), sketch=64, gradients=True)
    layout = Layout(matrices, SNAPSHOTS, None, contents)
    writer = StoreWriter.create(path, layout, {"kind": "run"})
    draw = np.random.default_rng(0)
    gradients = {name: None for name in layout.snapshot_arrays() if name.startswith("gradients/")}
    nbytes = 0
    for step in range(SNAPSHOTS):
        arrays = {"sketches/gradient": draw.standard_normal((len(matrices), 64), np.float32)}
        for name in gradients:
            shape = layout.snapshot_arrays()[name].shape[1:]
            new = 1e-4 * draw.standard_normal(shape, np.float32)
            old = gradients[name]
            gradients[name] = new if old is None else 0.8 * old + 0.6 * new
            arrays[name] = (gradients[name].view(np.uint32) >> 16).astype(np.uint16)
            nbytes += arrays[name].nbytes
        writer.write_snapshot(step, arrays)
    writer.close()
    return nbytes / 1e9
