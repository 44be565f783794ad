"""Figures of a matrix over all snapshots: whole once, then only the rows that are new."""

import base64
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spectra
from spectra.figures.reduction import block_size, reduced
from spectra_dashboard import panels
from spectra_dashboard.access.library import Library
from spectra_dashboard.view import View
from tests.dashboard.served import Growing

MATRIX = "model.layers.0.x.q_proj"


@pytest.fixture
def growing(tmp_path):
    made = Growing(tmp_path / "a.zarr")
    made.run = Library(tmp_path).run("a.zarr")
    yield made
    made.close()


def test_a_panel_holds_what_was_recorded(folder):
    run = Library(folder).run("small/spectra.zarr")
    opened, name = spectra.open(run.path), run.matrices()[0].name
    figure, held = panels.whole(run, View(), panels.key("cosine", name))
    np.testing.assert_allclose(
        figure.data[0].z, spectra.cosine_similarity(opened).sel(matrix=name), atol=1e-6
    )
    assert "approximate" in figure.layout.title.subtitle.text
    exact, _ = panels.whole(run, View(cosine="exact"), panels.key("cosine", name))
    assert "exact" in exact.layout.title.subtitle.text
    figure, held = panels.whole(run, View(norm="first"), panels.key("weight", name))
    weight = opened["spectra"].weight.sel(matrix=name).to_numpy()
    finite = np.isfinite(weight[0])
    np.testing.assert_allclose(
        figure.data[0].z[:, finite], (weight / weight[:, :1])[:, finite], rtol=1e-6
    )
    assert (held.count, held.last, figure.data[0].y.tolist()) == (4, 7, [0, 3, 6, 7])
    assert panels.kinds(run) == ["cosine", "gradient", "overlap", "weight", "update", "lines"]


@pytest.mark.parametrize("kind", ["cosine", "weight"])
def test_only_new_rows_are_sent(growing, kind):
    name = panels.key(kind, MATRIX)
    growing.snapshots(5)
    _, held = panels.whole(growing.run, View(), name)
    assert panels.up_to_date(growing.run, View(), name, held)
    growing.snapshots(2)
    assert not panels.up_to_date(growing.run, View(), name, held)
    new = panels.rows(growing.run, View(), name, held)
    assert (new.first, new.values.shape[0], new.steps) == (5, 2, [5, 6])
    sent = base64.b64decode(new.to_dict()["values"])
    assert len(sent) == 2 * (7 if kind == "cosine" else 8) * 4
    again, _ = panels.whole(growing.run, View(), name)
    np.testing.assert_array_equal(np.array(again.data[0].z)[5:], new.values)


def test_rows_that_would_not_fit_are_sent_whole(growing):
    name = panels.key("weight", MATRIX)
    growing.snapshots(4)
    _, held = panels.whole(growing.run, View(), name)
    assert panels.rows(growing.run, View(), name, held).first == 4
    assert panels.rows(growing.run, View(scale="log"), name, held).first == 0
    assert panels.rows(growing.run, View(), name, replace(held, last=99)).first == 0
    assert panels.rows(growing.run, View(), name, replace(held, run="b.zarr")).first == 0


def test_a_run_that_was_taken_back_is_drawn_anew(growing):
    name = panels.key("weight", MATRIX)
    growing.snapshots(6)
    _, held = panels.whole(growing.run, View(), name)
    growing.take_back(2)
    assert growing.run.steps().tolist() == [0, 1, 2]
    assert panels.rows(growing.run, View(), name, held).first == 0
    growing.snapshots(1)
    assert panels.rows(growing.run, View(), name, held).first == 0


def test_long_runs_are_shown_in_blocks(growing, monkeypatch):
    monkeypatch.setattr(panels, "most_rows", lambda run, view: 6)
    growing.snapshots(9)
    view, weights = View(), panels.key("weight", MATRIX)
    figure, held = panels.whole(growing.run, view, weights)
    assert (held.size, len(figure.data[0].y)) == (2, 5)
    assert "largest of 2 snapshots each" in figure.layout.title.subtitle.text
    growing.snapshots(2)
    new = panels.rows(growing.run, view, weights, held)
    assert (new.first, new.steps) == (4, [8, 10])
    whole, _ = panels.whole(growing.run, view, weights)
    np.testing.assert_array_equal(np.array(whole.data[0].z)[4:], new.values)
    growing.snapshots(2)
    assert panels.rows(growing.run, view, weights, held).first == 0
    cosine = panels.rows(growing.run, view, panels.key("cosine", MATRIX), None)
    assert cosine.values.shape == (4, 4)


@settings(deadline=None)
@given(
    st.integers(1, 40).flatmap(
        lambda n: st.lists(st.floats(-1e3, 1e3) | st.just(float("nan")), min_size=n, max_size=n)
    ),
    st.sampled_from([1, 2, 4, 8]),
)
def test_spikes_survive_blocks(values, size):
    found = reduced(np.array(values)[:, None], size)[:, 0]
    blocks = [np.array(values[i : i + size]) for i in range(0, len(values), size)]
    for block, shown in zip(blocks, found, strict=True):
        finite = block[np.isfinite(block)]
        if len(finite):
            assert abs(shown) == np.abs(finite).max()
            assert shown in finite
        else:
            assert np.isnan(shown)


@given(st.integers(0, 10**6), st.integers(1, 1000))
def test_blocks_are_no_more_than_there_is_room_for(count, most):
    size = block_size(count, most)
    assert -(-count // size) <= most
    assert size == 1 or -(-count // (size // 2)) > most


def test_a_page_stays_within_its_cells(growing):
    growing.snapshots(1)
    for count in (1, 4, 8):
        names = tuple(m.name for m in growing.run.matrices())[:count]
        view = View(matrix=names)
        side = panels.most_rows(growing.run, view)
        cells = len(names) * (side**2 + 2 * side * panels.FIRST_VALUES)
        assert 0.95 * panels.CELLS < cells <= panels.CELLS


def test_the_lines_carry_every_step_for_the_scrubber(growing):
    growing.snapshots(3)
    name = panels.key("lines", MATRIX)
    figure, held = panels.whole(growing.run, View(), name)
    sent = np.frombuffer(base64.b64decode(figure.layout.meta["values"]), "<f4")
    rows = sent.reshape(figure.layout.meta["shape"])
    for step in range(3):
        both = [growing.run.spectrum(kind, MATRIX, step) for kind in ("weight", "gradient")]
        np.testing.assert_array_equal(rows[step], np.concatenate(both).astype(np.float32))
    growing.snapshots(1)
    assert panels.rows(growing.run, View(), name, held).values.shape == (1, 16)
