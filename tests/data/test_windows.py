"""The order in which training sees a corpus."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectra_data.errors import InputError
from spectra_data.windows import Windows, training_batch


def windows(count=10, length=4, rest=3):
    return Windows(np.arange(count * length + rest, dtype=np.uint16), length)


def test_windows_are_packed_and_disjoint():
    read = windows().read(np.arange(10))
    assert np.array_equal(read.ravel(), np.arange(40))
    assert len(windows()) == 10


def test_a_corpus_shorter_than_a_window_says_so():
    with pytest.raises(
        InputError, match=r"training part .* has 3 tokens, fewer than one window of 4"
    ):
        Windows(np.arange(3, dtype=np.uint16), 4)


@given(st.integers(0, 2**31), st.integers(1, 7))
def test_every_window_is_seen_once_an_epoch(seed, size):
    steps = 10 * size  # size epochs of ten windows
    batches = [training_batch(windows(), seed=seed, step=s, size=size) for s in range(steps)]
    firsts = np.concatenate(batches)[:, 0].reshape(-1, 10) // 4
    assert (np.sort(firsts, axis=1) == np.arange(10)).all()


def test_epochs_and_seeds_differ_in_their_order():
    def order(seed, epoch):
        return training_batch(windows(), seed=seed, step=epoch, size=10)[:, 0].tolist()

    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@given(st.integers(0, 100), st.sampled_from([1, 2, 3, 6]))
def test_any_number_of_ranks_sees_the_same_global_batch(step, world_size):
    whole = training_batch(windows(), seed=7, step=step, size=6)
    parts = [
        training_batch(
            windows(), seed=7, step=step, size=6 // world_size, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    assert np.array_equal(np.concatenate(parts), whole)


def test_a_batch_depends_on_nothing_that_came_before():
    later = training_batch(windows(), seed=3, step=40, size=4)
    for step in range(5):
        training_batch(windows(), seed=3, step=step, size=4)
    assert np.array_equal(training_batch(windows(), seed=3, step=40, size=4), later)
