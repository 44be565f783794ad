"""The paper's tables 1 and 2 and figure 7, and `quality`: the best model of a size."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from spectra.allocation.methods.registry import METHODS
from spectra.allocation.rankmap import RankMap
from spectra.calibration.blocks import Blocks
from spectra.experiments.bench import Bench
from spectra.experiments.ledger import Ledger, Row
from spectra.models.loading import Loaded
from spectra.pruning.pruner import Pruner
from spectra.pruning.sparsity import Pattern
from spectra.storages.registry import DEFAULT_STORAGE


@dataclass(frozen=True)
class Recipe:
    """A way to make a model of a size."""

    name: str
    way: str
    """How matrices are truncated: a method, or ``method on data``."""
    allocation: str
    storage: str
    align: int = 1


def table1(bench: Bench, ledger: Ledger) -> Iterator[Row]:
    """Perplexity by ERR: uniform, OWL and WeLore, all by plain SVD.

    Uniform, OWL and WeLore truncate every matrix to its rank, so all three remove the same ranks;
    ``welore, LRCs`` is what is stored: N-LRCs stay whole.
    """
    yield _dense(bench, ledger)
    for err in bench.settings.errs:
        for allocation in ("uniform", "owl", "welore"):
            yield _at_err(bench, ledger, "svd", allocation, err, all_ranks=True)
        yield _at_err(bench, ledger, "svd", "welore", err, all_ranks=False)


def table2(bench: Bench, ledger: Ledger) -> Iterator[Row]:
    """Perplexity by ERR of SVDs that know activations, with uniform and with WeLore's ranks."""
    yield _dense(bench, ledger)
    for err in bench.settings.errs:
        for way in ("asvd", "whiten"):
            for allocation in ("uniform", "welore"):
                yield _at_err(bench, ledger, way, allocation, err, all_ranks=True)


def quality(bench: Bench, ledger: Ledger) -> Iterator[Row]:
    """Perplexity at equal parameters: the public ways, and ours, with data and without."""
    text = bench.settings.calibration
    recipes = [
        Recipe("svd, uniform", "svd", "uniform", "factors"),
        Recipe("svd, welore", "svd", "welore", "factors"),
        Recipe("whiten, uniform (SVD-LLM)", f"whiten on {text}", "uniform", "factors"),
        Recipe("whiten, uniform, pivoted", f"whiten on {text}", "uniform", "pivoted"),
        Recipe("fisher, uniform, pivoted", f"fisher on {text}", "uniform", "pivoted"),
        Recipe("fisher, loss, factors", f"fisher on {text}", "loss", "factors"),
        Recipe("fisher, loss, pivoted", f"fisher on {text}", "loss", "pivoted"),
        Recipe("fisher, loss, pivoted, aligned to 16", f"fisher on {text}", "loss", "pivoted", 16),
    ]
    if text != "self":
        recipes.append(Recipe("the same on its own text", "fisher on self", "loss", "pivoted", 16))
    yield _dense(bench, ledger)
    for recipe in recipes:
        for budget in bench.settings.budgets:
            key = {"recipe": recipe.name, "budget_asked": budget}
            yield ledger.cell(key, partial(_of_recipe, bench, recipe, budget))


def figure7(bench: Bench, ledger: Ledger) -> Iterator[Row]:
    """Increase of perplexity when what stayed dense is pruned, by sparsity."""
    windows = bench.calibration_windows()
    for err in bench.settings.pruned_errs:
        weights, names = _compressed(bench, err)
        with bench.replaced(weights):
            base = ledger.cell(
                {"err": err, "pruner": "none", "sparsity": 0.0},
                lambda: {"perplexity": bench.perplexity(), "pruned": 0},
            )
        yield base
        for method in bench.settings.pruners:
            for sparsity in bench.settings.sparsities:
                pruner = Pruner(method, Pattern(sparsity), names)
                row = ledger.cell(
                    {"err": err, "pruner": method, "sparsity": sparsity},
                    partial(_pruned, bench, weights, pruner, windows),
                )
                yield row | {"increase": row["perplexity"] - base["perplexity"]}


def _dense(bench: Bench, ledger: Ledger) -> Row:
    return ledger.cell(
        {"recipe": "dense", "err_asked": 0.0, "budget_asked": 1.0},
        lambda: {"budget": 1.0, "err": 0.0, "perplexity": bench.perplexity()},
    )


def _at_err(
    bench: Bench, ledger: Ledger, way: str, allocation: str, err: float, *, all_ranks: bool
) -> Row:
    name = f"{way}, {allocation}" + ("" if all_ranks else ", LRCs")

    def measure() -> Row:
        rank_map = bench.allocated(allocation, err=err)
        return _measured(bench, way, rank_map, DEFAULT_STORAGE, all_ranks=all_ranks)

    return ledger.cell({"recipe": name, "err_asked": err}, measure)


def _of_recipe(bench: Bench, recipe: Recipe, budget: float) -> Row:
    if "statistics" in METHODS[recipe.allocation].needs:
        rank_map = bench.least_loss(recipe.way, budget, recipe.storage, recipe.align)
    else:
        rank_map = bench.allocated(recipe.allocation, budget=budget, storage=recipe.storage)
    return _measured(bench, recipe.way, rank_map, recipe.storage, all_ranks=False)


def _measured(bench: Bench, way: str, rank_map: RankMap, storage: str, *, all_ranks: bool) -> Row:
    factors = bench.truncated(way, rank_map, all_ranks=all_ranks)
    with bench.replaced(bench.products(factors, storage)):
        found = bench.perplexity()
    return {"err": rank_map.err, "budget": rank_map.budget, "perplexity": found}


def _compressed(bench: Bench, err: float) -> tuple[dict[str, torch.Tensor], frozenset[str]]:
    """Products of WeLore's LRCs, and the names of what stayed dense."""
    if err == 0:
        return {}, frozenset(bench.modules)
    rank_map = bench.allocated("welore", err=err)
    products = bench.products(bench.truncated("svd", rank_map, all_ranks=False))
    return products, frozenset(m.name for m in rank_map.nlrc)


def _pruned(
    bench: Bench, weights: dict[str, torch.Tensor], pruner: Pruner, windows: torch.Tensor
) -> Row:
    with bench.replaced(weights):
        if pruner.method == "magnitude":
            for name in pruner.names:
                module = bench.modules[name]
                module.weight.data = pruner.pruned(name, module.weight.data)
        else:
            blocks = Blocks(Loaded(bench.model), bench.device)
            size = bench.settings.batch_size
            for _ in pruner.blocks(blocks, windows, size, bench.progress):
                pass
        return {"perplexity": bench.perplexity(), "pruned": len(pruner.names)}
