"""Figures of spectra, measures and the paper's claim: what they draw is what they were given."""

import numpy as np
import pytest

from spectra.figures.allocation import (
    memory_curve,
    path_curves,
    perplexity_points,
    rank_map,
    rank_reduction,
)
from spectra.figures.dynamics import overlap_heatmap
from spectra.figures.emergence import correlation_forest, emergence_scatter
from spectra.figures.measures import (
    difference_heatmap,
    layer_role_grid,
    layer_role_heatmap,
    measure_lines,
)
from spectra.figures.spectra import normalised_spectra, spectra_lines, tail_fit
from spectra.figures.theme import ROLES, empty, role_color
from spectra.figures.training import loss_curves


def test_normalised_spectra_run_from_one_to_zero_in_a_panel_for_each_role():
    spectra = {
        "q": np.array([[4.0, 2, 1, np.nan], [9, 3, 0, np.nan]]),
        "up": np.array([[2.0, 2, 2, 2], [np.nan] * 4]),
    }
    layers = {"q": np.array([0, 1]), "up": np.array([0, 1])}
    figure = normalised_spectra(spectra, layers, threshold=0.2)
    lines = [trace.y.tolist() for trace in figure.data]
    assert lines[0] == pytest.approx([1, 1 / 3, 0], abs=1e-4)
    assert lines[1] == pytest.approx([1, 1 / 3, 0], abs=1e-4)
    assert lines[2] == [1, 1, 1, 1]  # all equal: nothing falls, and nothing is divided by zero
    assert len(lines) == 3  # a missing spectrum draws no line
    assert [a.text for a in figure.layout.annotations] == ["q", "up"]
    assert {shape.y0 for shape in figure.layout.shapes} == {0.2}
    assert "0.2" in figure.layout.title.subtitle.text


def test_any_number_of_roles_has_room():
    roles = [f"role{i}" for i in range(45)]
    spectra = {role: np.array([[2.0, 1, 0]]) for role in roles}
    figure = normalised_spectra(spectra, {role: np.array([0]) for role in roles}, threshold=0.1)
    assert len(figure.data) == 45


def test_a_tail_is_drawn_with_its_fit_and_edges():
    values = np.array([8.0, 4, 2, 1, 0.5, 0, np.nan])
    figure = tail_fit(
        values, title="m", alpha=2.0, x_min=1.0, tail_size=4, edge=0.7, threshold=0.9,
        verdict="too few values",
    )  # fmt: skip
    points, law, edge, threshold = figure.data
    assert points.x.tolist() == [8, 4, 2, 1, 0.5]
    assert points.y.tolist() == [1, 2, 3, 4, 5]
    assert law.x.tolist() == [1, 8]
    assert law.y.tolist() == [4, 0.5]  # 4 (x/1)^(1-2)
    assert set(edge.x) == {0.7}
    assert set(threshold.x) == {0.9}
    assert figure.layout.title.subtitle.text == "α 2.00 on 4 values: too few values"


def test_a_spectrum_without_a_tail_is_drawn_without_a_law():
    nothing = np.full(4, np.nan)
    figure = tail_fit(
        nothing, title="m", alpha=np.nan, x_min=np.nan, tail_size=0, edge=0, threshold=0
    )
    assert len(figure.data) == 1
    assert len(figure.data[0].x) == 0
    assert figure.layout.title.subtitle.text == "no power law to fit"


def test_lines_are_medians_over_layers_by_role():
    values = {"q": np.array([[1.0, 2, 3], [np.nan] * 3, [4, 5, 9]]), "x": np.ones((3, 1))}
    figure = measure_lines(values, np.array([0, 10, 20]), title="t")
    named = {trace.name: trace for trace in figure.data if trace.name}
    np.testing.assert_array_equal(named["q"].y, [2, np.nan, 5])
    assert named["q"].line.color == ROLES["q"]
    band = figure.data[0]
    assert band.x.tolist() == [0, 20, 20, 0]
    assert band.y.tolist() == [2.5, 7, 4.5, 1.5]


def test_a_map_has_layers_down_and_roles_across():
    grid = np.arange(6.0).reshape(2, 3)
    figure = layer_role_heatmap(grid, [0, 5], ["q", "k", "v"], title="t")
    assert figure.data[0].z.tolist() == grid.tolist()
    assert list(figure.data[0].y) == [0, 5]
    assert list(figure.data[0].x) == ["q", "k", "v"]
    assert figure.layout.yaxis.autorange == "reversed"


def test_overlaps_start_at_chance():
    figure = overlap_heatmap(np.eye(2), np.array([0, 1]), title="m", chance=0.0312)
    assert (figure.data[0].zmin, figure.data[0].zmax) == (0.0312, 1)
    assert "by chance 0.031" in figure.layout.title.subtitle.text


def test_the_claim_is_drawn_with_a_point_for_each_matrix():
    figure = emergence_scatter(
        np.array([1.0, 2, 3]), np.array([4.0, 5, 6]), ["q", "up", "q"], ["a", "b", "c"],
        title="t", subtitle="s", cause_label="x", outcome_label="y",
    )  # fmt: skip
    by_role = {trace.name: trace for trace in figure.data}
    assert by_role["q"].x.tolist() == [1, 3]
    assert by_role["q"].customdata.tolist() == ["a", "c"]
    assert by_role["up"].y.tolist() == [5]


def test_correlations_that_do_not_exist_are_left_out():
    figure = correlation_forest(
        np.array([0.5, np.nan]), np.array([0.1, np.nan]), np.array([0.8, np.nan]), ["a", "b"],
        title="t", subtitle="s",
    )  # fmt: skip
    (points,) = figure.data
    assert list(points.y) == ["a"]
    assert points.error_x.array.tolist() == pytest.approx([0.3])
    assert points.error_x.arrayminus.tolist() == pytest.approx([0.4])


def test_roles_keep_their_colours():
    assert role_color("q", 5) == ROLES["q"]
    assert role_color("experts", 0) != role_color("dense", 1)


def test_rank_reduction_has_a_line_for_each_role_and_the_lrc_line():
    figure = rank_reduction(
        {"q": np.array([0.9, 0.8]), "up": np.array([0.1, 0.2, 0.3])},
        {"q": np.array([0, 1]), "up": np.array([0, 0, 1])},
        lrc_factor=0.4,
    )
    lines, points = figure.data
    assert lines.mode == "lines+markers"
    assert points.mode == "markers"  # experts share a layer
    assert points.y.tolist() == [0.1, 0.2, 0.3]
    assert figure.layout.shapes[0].y0 == 0.6


def test_the_path_is_drawn_over_err():
    err = np.array([0.0, 0.5])
    figure = path_curves(err, np.array([1, 0.8]), np.array([0, 0.1]), np.array([0, 0.4]))
    assert figure.data[0].name == "parameters stored"
    assert all(trace.x.tolist() == [0, 0.5] for trace in figure.data)


def test_maps_of_layers_and_roles():
    values = np.array([1.0, 3.0, 5.0, np.nan, 2.0])
    layer_of, role_of = np.array([0, 0, 0, 1, 1]), np.array(["q", "x", "x", "q", "x"], object)
    grid, layers, roles = layer_role_grid(values, layer_of, role_of)
    assert (layers, roles) == ([0, 1], ["q", "x"])
    np.testing.assert_array_equal(grid, [[1, 4], [np.nan, 2]])  # experts share a place: the median
    shown = layer_role_heatmap(grid, layers, roles, title="t", numbers=True)
    assert shown.data[0].texttemplate == "%{z:.3~g}"
    difference = difference_heatmap(grid - 2, layers, roles, title="t")
    assert (difference.data[0].zmin, difference.data[0].zmax) == (-2, 2)
    nothing = difference_heatmap(np.zeros((2, 2)), layers, roles, title="t")
    assert (nothing.data[0].zmin, nothing.data[0].zmax) == (-1, 1)


def test_a_rank_map_says_its_ranks():
    figure = rank_map(np.array([[0.25, 1.0]]), [["● 16", "64"]], [0], ["q", "v"], title="t")
    assert [list(row) for row in figure.data[0].text] == [["● 16", "64"]]
    assert (figure.data[0].zmin, figure.data[0].zmax) == (0, 1)


def test_lines_show_leading_values_and_few_of_the_others():
    values = np.arange(4096, 0, -1).astype(float)
    figure = spectra_lines({"weight": values, "update": np.array([2.0, 1.0, np.nan])}, title="t")
    weight, update = figure.data
    assert list(weight.x[:120]) == list(range(1, 121))
    assert (weight.x[-1], len(weight.x) <= 240, list(update.y)) == (4096, True, [2, 1])


def test_measured_points_are_joined_by_how_they_were_made():
    err, perplexity = np.array([0.4, 0.2, 0.3]), np.array([14.0, 11.0, 20.0])
    figure = perplexity_points(err, perplexity, ["a", "a", "b"])
    assert [(list(t.x), list(t.y)) for t in figure.data] == [
        ([0.2, 0.4], [11, 14]),
        ([0.3], [20]),
    ]
    memory = memory_curve(np.array([0.0, 0.5]), np.array([2e9, 1e9]), dense=2e9)
    assert (list(memory.data[0].y), memory.layout.yaxis.title.text) == ([2, 1], "GB")


def test_losses_of_runs_have_their_names():
    steps = np.arange(3)
    figure = loss_curves(dict.fromkeys("abc", (steps, steps * 1.0)))
    assert [trace.name for trace in figure.data] == ["a", "b", "c"]
    assert len({trace.line.color for trace in figure.data}) == 3


def test_an_empty_figure_says_why():
    assert "no loss was logged" in empty("no loss was logged").layout.annotations[0].text
