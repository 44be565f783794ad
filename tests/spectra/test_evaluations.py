"""Measured perplexities beside the spectra they belong to."""

import pytest

import spectra
from data.errors import InputError
from spectra.store.evaluations import Evaluation, add_evaluation, evaluations
from spectra.store.verify import verify

ONE = Evaluation(0.4, 0.8, 14.5, "welore", data="text, with a comma")
OTHER = Evaluation(0.2, 0.9, 11.0, "uniform", "whiten", "pivoted")


def test_measurements_are_read_back_in_order(store):
    assert evaluations(spectra.open(store)) == []
    add_evaluation(store, ONE)
    add_evaluation(store, OTHER)
    assert evaluations(spectra.open(store)) == [ONE, OTHER]
    assert not verify(store).problems


@pytest.mark.parametrize(
    "fields", [{"err": 1.5}, {"budget": -0.1}, {"perplexity": float("nan")}, {"perplexity": 0.0}]
)
def test_what_cannot_be_measured_is_refused(fields):
    with pytest.raises(InputError, match="not "):
        Evaluation(**{"err": 0.1, "budget": 0.9, "perplexity": 9.0, "allocation": "a"} | fields)
