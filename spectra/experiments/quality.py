"""`quality`: the best model of a size."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from spectra.allocation.methods.registry import METHODS
from spectra.experiments.experiment import Presentation
from spectra.experiments.ledger import Ledger, Row
from spectra.experiments.measured import MeasuredExperiment, Setup
from spectra.experiments.settings import PerplexitySettings
from spectra.experiments.tables import dense, truncated
from spectra.keywords import Share

if TYPE_CHECKING:
    from spectra.experiments.bench import Bench


@dataclass(frozen=True)
class QualitySettings(PerplexitySettings):
    """Options of `quality`."""

    budgets: tuple[Share, ...] = (0.9, 0.8, 0.6)
    """Budgets to measure: fractions of block parameters."""


@dataclass(frozen=True)
class Recipe:
    """A way to make a model of a size."""

    name: str
    way: str
    """Way to truncate matrices: a method, or ``method on data``."""
    allocation: str
    storage: str
    align: int = 1


def quality(setup: Setup, ledger: Ledger) -> Iterator[Row]:
    """Perplexity at equal parameters: the public ways, and ours, with data and without."""
    from spectra.experiments.bench import Bench

    text = setup.settings.calibration
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
    bench = Bench(setup)
    yield dense(bench, ledger)
    for recipe in recipes:
        for budget in setup.settings.budgets:
            key = {"recipe": recipe.name, "budget_asked": budget}
            yield ledger.cell(key, partial(_of_recipe, bench, recipe, budget))


def _of_recipe(bench: "Bench", recipe: Recipe, budget: float) -> Row:
    if "statistics" in METHODS[recipe.allocation].needs:
        rank_map = bench.least_loss(recipe.way, budget, recipe.storage, recipe.align)
    else:
        rank_map = bench.allocated(recipe.allocation, budget=budget, storage=recipe.storage)
    return truncated(bench, recipe.way, rank_map, recipe.storage, all_ranks=False)


QUALITY = MeasuredExperiment(
    "quality",
    QualitySettings,
    Presentation(
        "Perplexity at equal parameters",
        ("recipe", "budget_asked", "budget", "perplexity"),
        "budget_asked",
        "perplexity",
        "fraction of block parameters",
    ),
    quality,
)
