"""Reads a store in a loop while others write to it; started by test_crash."""

import time
from pathlib import Path

import numpy as np

import spectra


def look(store):
    """Read all of a store; how many snapshots it had, all of them whole."""
    run = spectra.open(store)
    steps = run["spectra"].step.values
    for group in ("spectra", "sketches", "status", "subspaces", "gradients/4x6", "gradients/3x9"):
        dataset = run[group].to_dataset().compute()
        for name, array in dataset.data_vars.items():
            expected = steps.reshape(-1, *[1] * (array.ndim - 1))
            present = ~np.isnan(array.values)
            if name == "code":
                assert (array == 0).all(), f"{group}/{name} of {steps}"
                continue
            whole = present.any(axis=tuple(range(1, present.ndim)))  # of a store without steps, too
            assert whole.all(), f"{group}/{name} is missing"
            same = np.where(present, array.values == _rounded(group, expected), True)
            assert same.all(), f"{group}/{name} is of another step"
    train = run["train"].to_dataset().compute()
    assert (train.loss == train.train_step).all()
    return len(steps)


def _rounded(group, steps):
    if not group.startswith("gradients"):
        return steps
    bits = steps.astype(np.float32).view(np.uint32) >> 16
    return (bits << 16).view(np.float32)


def look_on(store, stop):
    count = 0
    while not Path(stop).exists():
        if Path(store).exists():
            look(store)
            count += 1
        time.sleep(0.002)
    print(count)
