"""Allocation: targets met exactly, totals that add up, and the order of matrices without effect."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import spectra
from spectra.allocation.allocate import Maker, allocate
from spectra.allocation.budget import Menus
from spectra.allocation.candidates import Candidate, Candidates, candidates_of
from spectra.allocation.costs import break_even, factored_parameters
from spectra.allocation.methods.registry import offered
from spectra.allocation.methods.welore import GRID, normalised
from spectra.allocation.options import AllocationSettings
from spectra.allocation.path import compression_path
from spectra.calibration.outliers import outlier_shares
from spectra.cli import main
from spectra.matrices import Matrix
from spectra_data.errors import InputError
from tests.small import random_batch, small_llama
from tests.smollm import smollm

METHODS = offered("outliers")
OUTLIERS = {layer: 0.01 * (layer % 7) for layer in range(64)}
LLAMA_7B = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
ROLES = ("q", "k", "v", "o", "gate", "up", "down")


def options_of(method):
    return {"outliers": OUTLIERS} if method == "owl" else {}


def candidates(shapes, values=None, seed=0):
    """Matrices of these shapes with decaying spectra, seven to a layer."""
    draw = np.random.default_rng(seed)
    each = []
    for i, (rows, cols) in enumerate(shapes):
        layer, place = divmod(i, 7)
        full = min(rows, cols)
        s = np.sort(draw.exponential(size=full))[::-1] if values is None else values[i]
        name = f"model.layers.{layer}.x.{ROLES[place]}_proj"
        matrix = Matrix(name, layer, ROLES[place], rows, cols)
        each.append(Candidate(matrix, np.asarray(s, np.float64)))
    return Candidates(tuple(each), {"name": "made", "revision": None, "sha256": None})


@pytest.fixture(scope="module")
def stories(tmp_path_factory, shared):
    place = tmp_path_factory.mktemp("stories") / "a.zarr"
    return spectra.scan(shared / "data" / "checkpoints" / "stories260K", place)


# WeLore


def reference_ranks(spectra_, k, factor=0.5):
    """The paper's formulas, transcribed: section 3.3."""
    found = []
    for s in spectra_:
        s_hat = (s - s.min()) / (s.max() - s.min())
        found.append(int(np.sum(s_hat >= k)))
    return found


def spectra_by_torch(folder):
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    names = [n for n, t in tensors.items() if ".layers." in n and t.ndim == 2]
    return {n.removesuffix(".weight"): torch.linalg.svdvals(tensors[n].double()).numpy()
            for n in names}  # fmt: skip


@pytest.mark.parametrize("err", [0.1, 0.25, 0.5, 0.7])
def test_ranks_are_those_of_the_papers_formulas(stories, shared, err):
    exact = spectra_by_torch(shared / "data" / "checkpoints" / "stories260K")
    made = allocate(stories, err=err)
    expected = dict(zip(exact, reference_ranks(exact.values(), made.threshold), strict=True))
    assert made.ranks == expected
    total = sum(len(s) for s in exact.values())
    assert made.err == sum(len(s) - expected[n] for n, s in exact.items()) / total
    assert abs(made.err - err) <= 0.5 / total
    for module in made.modules:
        low = module.rank < 0.5 * module.full_rank
        assert (module.kind == "LRC") == module.factored == low
        assert module.params == (module.rank * (module.rows + module.cols) if low
                                 else module.rows * module.cols)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("err", [0.2, 0.5, 0.8])
def test_ranks_are_those_of_the_papers_formulas_on_smollm(tmp_path, err):
    model = smollm()
    made = allocate(spectra.scan(model, tmp_path / "a.zarr"), err=err)
    weights = {n.removesuffix(".weight"): p for n, p in model.named_parameters()
               if ".layers." in n and p.ndim == 2}  # fmt: skip
    exact = {n: torch.linalg.svdvals(p.detach().double()).numpy() for n, p in weights.items()}
    expected = dict(zip(exact, reference_ranks(exact.values(), made.threshold), strict=True))
    assert made.ranks == expected
    assert abs(made.err - err) <= 1 / sum(len(s) for s in exact.values())


def test_the_papers_grid_takes_the_nearest_of_its_thresholds(stories):
    made = allocate(stories, err=0.5, method="welore-grid")
    assert made.threshold in GRID
    errs = [allocate(stories, threshold=float(k)).err for k in GRID]
    assert abs(made.err - 0.5) == min(abs(e - 0.5) for e in errs)


def test_normalisation_by_the_largest_value_is_another_map(stories):
    one = allocate(stories, threshold=0.2)
    other = allocate(stories, threshold=0.2, normalisation="max")
    assert one.ranks != other.ranks
    for candidate in candidates_of(stories).each:
        share = candidate.values / candidate.values[0]
        assert other[candidate.matrix.name].rank == (share >= 0.2).sum()


def test_equal_singular_values_keep_a_matrix_whole():
    flat = candidates([(8, 8), (8, 12)], [np.ones(8), np.linspace(1, 0.1, 8)])
    for err in (0.1, 0.3, 0.43):
        made = allocate(flat, err=err)
        assert made.modules[0].rank == 8
        assert made.modules[0].kind == "N-LRC"
    with pytest.raises(InputError, match=r"an ERR of 0.6 cannot be reached: .* 0 to 0.4375"):
        allocate(flat, err=0.6)


def test_the_lrc_rules_factor_is_an_option(stories):
    assert len(allocate(stories, err=0.5, lrc_factor=0.7).lrc) > len(allocate(stories, err=0.5).lrc)
    for factor in (0, 1.5, -1):
        with pytest.raises(InputError, match="factor"):
            allocate(stories, err=0.5, lrc_factor=factor)


# every method


@pytest.mark.parametrize("method", METHODS)
def test_a_map_states_what_was_asked_and_what_is_reached(stories, method):
    made = allocate(stories, budget=0.7, method=method, **options_of(method))
    assert made.asked == {"err": None, "budget": 0.7, "threshold": None}
    assert made.budget <= 0.7
    removed = sum(m.full_rank - m.rank for m in made.modules)
    assert made.err == removed / sum(m.full_rank for m in made.modules)
    dense = sum(m.rows * m.cols for m in made.modules)
    assert made.budget == sum(m.params for m in made.modules) / dense
    assert (made.threshold is None) == (not method.startswith("welore"))
    values = {c.matrix.name: c.values for c in candidates_of(stories).each}
    for m in made.modules:
        lost = np.linalg.norm(values[m.name][m.rank :]) / np.linalg.norm(values[m.name])
        assert m.relative_error == pytest.approx(lost if m.factored else 0.0, abs=1e-12)
        if not method.startswith("welore"):
            assert m.params <= m.params_dense


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", ["err", "budget"])
def test_ranks_are_monotone_in_the_target(stories, method, target):
    values = [0.1, 0.3, 0.45, 0.6, 0.75] if target == "err" else [0.9, 0.75, 0.6, 0.5, 0.3]
    maps = [allocate(stories, method=method, **{target: v}, **options_of(method)) for v in values]
    totals = [sum(made.ranks.values()) for made in maps]
    errors = [sum(m.relative_error for m in made.modules) for made in maps]
    assert totals == sorted(totals, reverse=True)
    assert errors == sorted(errors)
    if method not in ("budget", "uniform"):  # which trade one matrix against another
        for more, less in itertools.pairwise(maps):
            assert all(less.ranks[name] <= rank for name, rank in more.ranks.items())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", [{"err": 0.4}, {"budget": 0.55}, {"budget": 0.55, "align": 4}])
def test_the_order_of_matrices_changes_nothing(stories, method, target):
    given = candidates_of(stories)
    order = np.random.default_rng(0).permutation(len(given.each))
    shuffled = Candidates(tuple(given.each[i] for i in order), given.model, given.format)
    options = target | options_of(method)
    one = allocate(given, method=method, **options)
    other = allocate(shuffled, method=method, **options)
    assert one.ranks == other.ranks
    assert (one.err, one.budget, one.threshold) == (other.err, other.budget, other.threshold)


@pytest.mark.parametrize("method", ["uniform", "owl", "alpha", "d-rank"])
def test_targets_are_met_to_within_one_rank(stories, method):
    given = candidates_of(stories)
    maker = Maker(given, AllocationSettings(method=method), **options_of(method))
    full = given.full_ranks.sum()
    for err in (0.0, 0.123, 0.5, 0.9):
        made = allocate(given, err=err, method=method, **options_of(method))
        assert abs((1 - made.err) * full - (1 - err) * full) <= 1
    for budget in (0.2, 0.5, 0.77):
        made = allocate(given, budget=budget, method=method, **options_of(method))
        ranks = np.array([m.rank for m in made.modules])
        dense = sum(m.params_dense for m in made.modules)
        assert made.budget <= budget
        left = budget * dense - made.parameters
        # the next rank of some matrix does not fit
        more = [maker.parameters(ranks + (np.arange(len(ranks)) == i)).sum() - made.parameters
                for i in range(len(ranks)) if ranks[i] < given.full_ranks[i]]  # fmt: skip
        assert max(more) > left


def test_uniform_is_the_same_fraction_everywhere(stories):
    made = allocate(stories, err=0.5, method="uniform")
    assert {m.rank / m.full_rank for m in made.modules} == {0.5}
    made = allocate(stories, budget=0.6, method="uniform")
    assert all(abs(m.params / m.params_dense - 0.6) < (m.rows + m.cols) / m.params_dense
               for m in made.modules)  # fmt: skip


def test_alpha_takes_less_from_blocks_with_heavier_tails():
    heavy, light = np.arange(1, 101) ** -1.0, 1 + np.arange(100)[::-1] / 100
    given = candidates([(100, 100)] * 14, [heavy] * 7 + [light] * 7)
    made = allocate(given, err=0.5, method="alpha")
    kept = [np.mean([m.rank for m in made.modules if m.layer == layer]) for layer in (0, 1)]
    # AlphaPruning, ε = 0.3: removed in the ratio 0.7 to 1.3
    assert (100 - kept[0]) / (100 - kept[1]) == pytest.approx(0.7 / 1.3, rel=0.02)


def test_owl_keeps_more_where_there_are_more_outliers():
    given = candidates([(100, 100)] * 21)
    made = allocate(given, err=0.5, method="owl", outliers={0: 0.0, 1: 0.02, 2: 0.04})
    kept = [np.mean([m.rank / 100 for m in made.modules if m.layer == layer]) for layer in range(3)]
    np.testing.assert_allclose(kept, [0.42, 0.5, 0.58], atol=0.011)  # λ = 0.08
    with pytest.raises(InputError, match="needs the share of outliers"):
        allocate(given, err=0.5, method="owl")
    with pytest.raises(InputError, match=r"for the block model\.layers\.2"):
        allocate(given, err=0.5, method="owl", outliers={0: 0.1, 1: 0.2})
    with pytest.raises(InputError, match="alpha counts no outliers: leave them out"):
        allocate(given, err=0.5, method="alpha", outliers={0: 0.0, 1: 0.02, 2: 0.04})
    by_path = {f"model.layers.{number}": share for number, share in enumerate((0.0, 0.02, 0.04))}
    assert allocate(given, err=0.5, method="owl", outliers=by_path).ranks == made.ranks


def test_outliers_are_counted_by_weights_and_activations():
    model = small_llama()
    tokens = random_batch(0)
    inputs = {}
    name = "model.layers.0.mlp.down_proj"
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda _, given: inputs.update(x=given[0].detach())
    )
    model(input_ids=tokens)
    hook.remove()
    model.train()
    shares = outlier_shares(model, tokens.split(2))
    assert model.training
    assert set(shares) == {"model.layers.0", "model.layers.1"}
    assert all(0 < share < 0.2 for share in shares.values())
    # a block of one matrix, by hand
    only = torch.nn.Module()
    only.layers = torch.nn.ModuleList([torch.nn.ModuleDict({"a": model.get_submodule(name)})])
    only.forward = lambda input_ids: only.layers[0]["a"](inputs["x"][input_ids])
    (share,) = outlier_shares(only, torch.arange(4).split(1)).values()
    norms = inputs["x"].reshape(-1, 48).norm(dim=0)
    scores = model.get_submodule(name).weight.detach().abs() * norms
    assert share == pytest.approx((scores > 5 * scores.mean()).double().mean().item())


def test_owl_on_a_checkpoint_and_text(tmp_path, shared, capsys):
    checkpoint = str(shared / "data" / "checkpoints" / "stories260K")
    text = str(shared / "data" / "text" / "wikitext2-valid.txt")
    assert main(["scan", checkpoint, "--out", str(tmp_path / "a.zarr")]) == 0
    owl = ["allocate", str(tmp_path / "a.zarr"), "--err", "0.5", "--method", "owl"]
    assert main(owl) == 2
    assert "name --checkpoint and --calibration" in capsys.readouterr().err
    assert main([*owl, "--checkpoint", checkpoint, "--calibration", text]) == 0
    (tmp_path / "short.txt").write_text("Once upon a time.")
    short = ["--checkpoint", checkpoint, "--calibration", str(tmp_path / "short.txt")]
    assert main([*owl, *short]) == 2
    assert "fewer than one window of 512" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--calibration", "pydocs"], "welore counts no outliers: leave --calibration out"),
        (
            ["--checkpoint", "m", "--method", "alpha"],
            "alpha counts no outliers: leave --checkpoint",
        ),
        (["--outliers", "a.json"], "welore counts no outliers: leave --outliers out"),
    ],
)
def test_outliers_of_a_method_that_counts_none_are_refused(given, message, capsys):
    assert main(["allocate", "s.zarr", "--err", "0.5", *given]) == 2
    assert message in capsys.readouterr().err


def test_d_rank_is_in_proportion_to_effective_rank_and_cost():
    given = candidates([(64, 64), (64, 192)], [np.ones(64), np.ones(64)])
    made = allocate(given, err=0.75, method="d-rank")
    one, other = (m.rank for m in made.modules)
    assert one / other == pytest.approx(np.sqrt(256 / 128), rel=0.06)


def test_factored_ranks_are_aligned_within_the_budget(stories):
    for method in METHODS:
        made = allocate(stories, budget=0.6, method=method, align=8, **options_of(method))
        assert all(m.rank % 8 == 0 for m in made.modules if m.factored)
        assert made.budget <= 0.6


@pytest.mark.parametrize(
    ("rows", "cols", "share"),
    [(4096, 4096, 0.5), (11008, 4096, 0.729), (14336, 4096, 0.778), (1024, 4096, 0.8)],
)
def test_break_even(rows, cols, share):
    rank = break_even(rows, cols)
    assert rank / min(rows, cols) == pytest.approx(share, abs=5e-4)
    below, above = int(np.ceil(rank)) - 1, int(rank) + 1
    assert (
        factored_parameters(rows, cols, below)
        < rows * cols
        < factored_parameters(rows, cols, above)
    )


@pytest.mark.parametrize(("kept", "err"), [(0.8, 0.52), (0.6, 0.64), (0.4, 0.76)])
def test_documented_identity_of_err_and_kept_parameters_on_llama_7b_shapes(kept, err):
    given = candidates(LLAMA_7B * 32, [np.linspace(1, 0, 4096)] * 7 * 32)
    made = allocate(given, budget=kept, method="uniform")
    assert made.budget == pytest.approx(kept, abs=1e-4)
    assert made.err == pytest.approx(err, abs=0.005)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", [{"err": 1.0}, {"err": -0.1}, {"budget": 0.0}, {"budget": 1.1}])
def test_impossible_targets_say_what_is_possible(stories, method, target):
    with pytest.raises(InputError, match=r"(cannot be reached: .* 0.* to|is a fraction)"):
        allocate(stories, method=method, **target, **options_of(method))


def test_targets_and_methods_that_make_no_sense(stories):
    for options, message in [
        ({}, "name one target"),
        ({"err": 0.1, "budget": 0.5}, "name one target"),
        ({"err": float("nan")}, "is a number"),
        ({"threshold": 2}, "from 0 to 1"),
        ({"err": 0.1, "method": "uniform", "normalisation": "max"}, "does not normalise"),
        ({"threshold": 0.1, "method": "uniform"}, "a threshold is WeLore's"),
        ({"err": 0.5, "method": "best"}, "there are: welore"),
        ({"err": 0.5, "normalisation": "l2"}, "there are: minmax, max"),
        ({"err": 0.5, "storage": "zip"}, "there are: factors, pivoted"),
        ({"err": 0.5, "align": 0}, "multiples of 1 or more"),
        ({"err": 0.5, "step": 77}, "no snapshot at step 77"),
    ]:
        with pytest.raises(InputError, match=message):
            allocate(stories, **options)


def test_matrices_of_zeros_and_of_low_rank_have_maps():
    low = np.concatenate([np.arange(8, 0, -1.0), np.zeros(24)])
    given_ = candidates([(32, 32)] * 8, [low] * 6 + [np.zeros(32), np.ones(32)])
    for method in METHODS:
        for target in ({"err": 0.5}, {"budget": 0.6}):
            made = allocate(given_, method=method, **target, **options_of(method))
            if method in ("uniform", "owl", "d-rank"):
                assert made.err == pytest.approx(target.get("err", made.err), abs=0.005)
            assert made.budget <= target.get("budget", 1)
    path = compression_path(given_, spacing=0.05)
    assert path.sizes["target"] > 10
    assert (path["rank"].isel(matrix=7) == 32).all()


def test_an_lrc_is_never_stored_as_more_than_it_was(stories):
    made = allocate(stories, budget=0.9, lrc_factor=0.95)
    assert made.budget <= 0.9
    assert all(m.params <= m.params_dense for m in made.modules)
    assert allocate(stories, budget=1.0, lrc_factor=0.95).threshold == 0.0


# the least error under a budget


def brute_force(given, parameters, align=1):
    menus = []
    for c in given.each:
        m, n = c.matrix.rows, c.matrix.cols
        ranks = [r for r in range(align, c.full_rank, align) if r * (m + n) < m * n]
        menus.append([(r * (m + n), c.relative_errors[r]) for r in ranks] + [(m * n, 0.0)])
    sums = ((sum(cost for cost, _ in chosen), sum(e for _, e in chosen))
            for chosen in itertools.product(*menus))  # fmt: skip
    return min((error for cost, error in sums if cost <= parameters), default=None)


sides = st.integers(2, 9)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(sides, sides), min_size=1, max_size=4),
    st.floats(0.05, 1.0),
    st.integers(0, 1000),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_the_budget_is_spent_as_no_enumeration_can_better(shapes, share, seed, align, flat):
    values = [np.ones(min(shape)) for shape in shapes] if flat else None
    given_ = candidates(shapes, values, seed)
    menus = Menus(given_, align=align)
    parameters = int(share * menus.dense)
    least = brute_force(given_, parameters, align)
    if least is None:
        with pytest.raises(InputError, match="cannot be reached"):
            menus.choose(parameters)
        return
    choice = menus.choose(parameters)
    assert choice.error == pytest.approx(least, abs=1e-9)
    assert choice.lower_bound <= choice.error + 1e-12


@pytest.mark.parametrize("storage", ["factors", "pivoted"])
@pytest.mark.parametrize("budget", [0.3, 0.5, 0.7, 0.9])
def test_no_other_method_has_less_error_in_the_same_budget(stories, budget, storage):
    best = allocate(stories, budget=budget, method="budget", storage=storage)
    least = sum(m.relative_error for m in best.modules)
    assert best.options["lower_bound"] <= least + 1e-9
    for method in METHODS:
        other = allocate(
            stories, budget=budget, method=method, storage=storage, **options_of(method)
        )
        assert least <= sum(m.relative_error for m in other.modules) + 1e-9


def test_how_far_from_the_best_a_large_budget_map_can_be_is_known():
    draw = np.random.default_rng(0)
    values = [np.sort(draw.pareto(1 + i % 5, 512) + 0.3)[::-1] for i in range(56)]
    given = candidates([(512, 512), (1376, 512)] * 28, values)
    made = allocate(given, budget=0.5, method="budget")
    gap = made.options["summed_error"] / made.options["lower_bound"] - 1
    assert 0 <= gap < 2e-3


# commands


def test_the_commands_report_what_scripts_rely_on(tmp_path, shared, capsys):
    checkpoint = shared / "data" / "checkpoints" / "stories260K"
    place, out = str(tmp_path / "a.zarr"), tmp_path / "map.json"
    assert main(["scan", str(checkpoint), "--out", place]) == 0
    capsys.readouterr()
    assert main(["allocate", place, "--err", "0.5", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    made = spectra.RankMap.load(out)
    assert found["err_asked"] == found["err"] == made.err == 0.5
    assert (found["lrc"], found["nlrc"]) == (len(made.lrc), len(made.nlrc))
    assert found["parameters"] == made.parameters
    assert found["bytes"] == 4 * made.parameters  # it is stored in float32
    assert found["threshold"] == made.threshold
    assert main(["allocate", place, "--budget", "0.6", "--method", "budget"]) == 0
    said = capsys.readouterr().out
    assert "budget 0.59" in said
    assert main(["allocate", place, "--err", "1.5"]) == 2
    assert "cannot be reached" in capsys.readouterr().err
    shares = tmp_path / "d.json"
    shares.write_text(json.dumps({str(layer): 0.01 * layer for layer in range(5)}))
    owl = ["allocate", place, "--err", "0.5", "--method", "owl", "--outliers", str(shares)]
    assert main(owl) == 0
    shares.write_text("[]")
    assert main(owl) == 2
    assert "not a JSON object" in capsys.readouterr().err


def test_values_normalised_by_min_and_max_run_from_one_to_zero():
    (candidate,) = candidates([(5, 7)]).each
    values = normalised(candidate)
    assert (values[0], values[-1]) == (1.0, 0.0)
