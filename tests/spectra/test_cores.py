"""Threads: never more than cores, however work is nested."""

import threading

import numpy as np
import pytest

from spectra.machine import cores
from spectra.metrics import measures as module
from spectra.metrics.measures import measures
from spectra.metrics.tails import power_law


@pytest.fixture
def many_cores(monkeypatch):
    """A machine of 16 cores, and the names of all threads that are started on it."""
    monkeypatch.setattr(cores, "available_cores", lambda: 16)
    for name in ("spectra.metrics.tails.available_cores",):
        monkeypatch.setattr(name, lambda: 16)
    started = []
    start = threading.Thread.start

    def counted(thread):
        started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", counted)
    return started


def test_a_table_of_metrics_starts_no_more_threads_than_cores(many_cores, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4)
    spectra = -np.sort(-np.abs(np.random.default_rng(0).normal(size=(200, 40))), axis=-1)
    alone = measures(spectra[:4], 40, 60)
    many_cores.clear()
    table = measures(spectra, 40, 60)
    assert 2 <= len(many_cores) <= 16
    np.testing.assert_array_equal(table["alpha"][:4], alone["alpha"])


def test_fits_alone_use_all_cores(many_cores):
    values = np.random.default_rng(0).pareto(2.5, size=(300, 30)) + 1
    power_law(-np.sort(-values, axis=-1))
    assert 2 <= len(many_cores) <= 16


def test_results_come_in_order_and_errors_come_out(many_cores):
    assert list(cores.in_threads(lambda n: n * n, range(50))) == [n * n for n in range(50)]
    nested = cores.in_threads(lambda n: list(cores.in_threads(str, range(n))), range(5))
    assert list(nested) == [[str(k) for k in range(n)] for n in range(5)]
    with pytest.raises(ZeroDivisionError):
        list(cores.in_threads(lambda n: 1 // n, [1, 0]))
