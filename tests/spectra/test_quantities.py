"""Quantities: one entry is recorded, verified, measured and shown."""

import json

import numpy as np
import pytest
import torch

import spectra
from spectra.figures.theme import TEMPLATE  # noqa: F401  (registers the template of figures)
from spectra.quantities import DEFAULT, EXTRAS, QUANTITIES, Quantity, worth
from spectra.recording.readers import Reader
from spectra.report.page import report_html
from spectra.report.payload import payload
from spectra_dashboard.panels import kinds
from tests.small import random_batch, small_llama, train


def _products(step, kept):
    values = {id(p): p.detach() for p in step.parameters}
    return [m @ m.mT for m in step.matrices(values, "product")]


READER = Reader("after", _products)
PRODUCT = Quantity(
    "product",
    "products",
    "singular values of the weight times itself",
    "Squares of the weight's.",
    worth=7,
    color="#000000",
    reader=f"{__name__}:READER",
    on_request=True,
    sides=lambda rows, cols: (rows, rows),
)


def recorded(tmp_path, **options):
    model = small_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    path = tmp_path / "run.zarr"
    made = {"probe": random_batch(7), "every": 2, "steps": 4, "sketch": 64}
    with spectra.record(model, optimizer, path, **made | options) as recorder:
        train(model, optimizer, 4, recorder=recorder)
    return path


@pytest.fixture
def product(monkeypatch):
    monkeypatch.setitem(QUANTITIES, "product", PRODUCT)


def test_a_quantity_with_sides_of_its_own_is_recorded_verified_and_measured(tmp_path, product):
    path = recorded(tmp_path, spectra=("weight", "product"))
    assert spectra.verify(path).problems == ()
    run = spectra.open(path)
    stored = run["spectra"].to_dataset()
    assert stored["product"].attrs["long_name"] == PRODUCT.long_name
    for name, rows, cols in zip(
        *(stored[v].to_numpy() for v in ("matrix", "rows", "cols")), strict=True
    ):
        weight, found = (stored[k].sel(matrix=name).isel(step=-1).to_numpy() for k in
                         ("weight", "product"))  # fmt: skip
        values = found[: int(rows)]
        assert np.isfinite(values).all()
        assert np.isnan(found[int(rows) :]).all()
        small = min(rows, cols)
        np.testing.assert_allclose(values[:small], weight[:small] ** 2, rtol=1e-3, atol=1e-5)
    table = spectra.metrics_table(run)
    assert {"weight", "product"} == set(table["kind"].to_numpy().tolist())
    assert np.isfinite(table["stable_rank"].sel(kind="product")).all()


def test_a_quantity_is_shown_by_page_and_report(tmp_path, product):
    path = recorded(tmp_path, spectra=("weight", "gradient", "product"))
    run = spectra.open(path)
    assert "Spectra of products" in report_html(run, name="run")
    assert "product" in payload(run)["arrays"]

    class Held:
        def kinds(self):
            return [name for name in QUANTITIES if name in run["spectra"].data_vars]

        def has(self, group):
            return group in run.children

    assert "product" in kinds(Held())


def test_all_that_can_be_recorded_of_a_step_is_in_the_report(tmp_path):
    path = recorded(tmp_path, spectra=tuple(QUANTITIES))
    page, shown = report_html(spectra.open(path), name="run"), payload(spectra.open(path))
    for name, quantity in QUANTITIES.items():
        assert f'data-kind="{name}"' in page
        assert name in shown["templates"]
        assert quantity.noun
    json.dumps(shown, allow_nan=False)


def test_every_part_of_a_snapshot_has_a_worth_of_its_own():
    parts = [*QUANTITIES, *EXTRAS]
    assert len({worth(part) for part in parts}) == len(parts)
    assert DEFAULT == ("weight", "gradient", "update")
