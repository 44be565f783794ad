"""Writes snapshots as fast as it can, until it is killed; started by test_crash."""

import numpy as np

from spectra.matrices import Matrix
from spectra.store.layout import Contents, Layout
from spectra.store.location import exists
from spectra.store.writer import StoreWriter

MATRICES = (Matrix("model.layers.0.a", 0, "a", 4, 6), Matrix("model.layers.1.a", 1, "a", 3, 9))
CONTENTS = Contents(sketch=8, gradients=True, subspaces=2)


def snapshot(step):
    """Arrays in which every value tells the step."""
    spectrum = np.full((2, 4), np.nan, np.float32)
    spectrum[0], spectrum[1, :3] = step, step
    arrays = {f"spectra/{kind}": spectrum for kind in CONTENTS.spectra}
    arrays["sketches/gradient"] = np.full((2, 8), step, np.float32)
    arrays["status/code"] = np.zeros((2, len(CONTENTS.parts)), np.uint8)
    bits = np.float32(step).view(np.uint32) >> 16
    arrays["gradients/4x6/gradient"] = np.full((1, 4, 6), bits, np.uint16)
    arrays["gradients/3x9/gradient"] = np.full((1, 3, 9), bits, np.uint16)
    arrays["subspaces/gradient_left"] = np.full((2, 4, 2), step, np.float32)
    arrays["subspaces/gradient_right"] = np.full((2, 9, 2), step, np.float32)
    return arrays


def write_on(store):
    layout = Layout(MATRICES, contents=CONTENTS)
    if exists(store):
        # as after a checkpoint at the last snapshot but two
        steps = StoreWriter(store, layout, None).steps
        writer = StoreWriter.resume(store, layout, {}, max(0, len(steps) - 2))
    else:
        writer = StoreWriter.create(store, layout, {"kind": "run"})
    done = writer.steps
    print("writing", len(done), flush=True)
    for step in range(len(done) + 1, 100_000):
        writer.write_snapshot(step, snapshot(step))
        print(step, flush=True)  # the snapshot is promised from here on
        writer.write_train_rows([{"train_step": step, "learning_rate": 1.0, "loss": float(step)}])
