"""The paper's tables 1 and 2: perplexity by effective rank reduction."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spectra.experiments.experiment import Presentation
from spectra.experiments.ledger import Ledger, Row
from spectra.experiments.measured import MeasuredExperiment, Setup
from spectra.experiments.settings import PerplexitySettings
from spectra.keywords import Share
from spectra.storages.registry import DEFAULT_STORAGE

if TYPE_CHECKING:
    from spectra.allocation.rankmap import RankMap
    from spectra.experiments.bench import Bench


@dataclass(frozen=True)
class ErrSettings(PerplexitySettings):
    """Options of tables 1 and 2."""

    errs: tuple[Share, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    """Effective rank reductions to measure."""


def table1(setup: Setup, ledger: Ledger) -> Iterator[Row]:
    """Perplexity by ERR: uniform, OWL and WeLore, all by plain SVD.

    Uniform, OWL and WeLore truncate every matrix to its rank, so all three remove the same ranks;
    ``welore, LRCs`` is the stored model, in which N-LRCs stay whole.
    """
    from spectra.experiments.bench import Bench

    bench = Bench(setup)
    yield dense(bench, ledger)
    for err in setup.settings.errs:
        for allocation in ("uniform", "owl", "welore"):
            yield _at_err(bench, ledger, "svd", allocation, err, all_ranks=True)
        yield _at_err(bench, ledger, "svd", "welore", err, all_ranks=False)


def table2(setup: Setup, ledger: Ledger) -> Iterator[Row]:
    """Perplexity by ERR of activation-aware SVDs, with uniform and with WeLore's ranks."""
    from spectra.experiments.bench import Bench

    bench = Bench(setup)
    yield dense(bench, ledger)
    for err in setup.settings.errs:
        for way in ("asvd", "whiten"):
            for allocation in ("uniform", "welore"):
                yield _at_err(bench, ledger, way, allocation, err, all_ranks=True)


def dense(bench: "Bench", ledger: Ledger) -> Row:
    """Row of the original model."""
    return ledger.cell(
        {"recipe": "dense", "err_asked": 0.0, "budget_asked": 1.0},
        lambda: {"budget": 1.0, "err": 0.0, "perplexity": bench.perplexity()},
    )


def _at_err(
    bench: "Bench", ledger: Ledger, way: str, allocation: str, err: float, *, all_ranks: bool
) -> Row:
    name = f"{way}, {allocation}" + ("" if all_ranks else ", LRCs")

    def measure() -> Row:
        rank_map = bench.allocated(allocation, err=err)
        return truncated(bench, way, rank_map, DEFAULT_STORAGE, all_ranks=all_ranks)

    return ledger.cell({"recipe": name, "err_asked": err}, measure)


def truncated(
    bench: "Bench", way: str, rank_map: "RankMap", storage: str, *, all_ranks: bool
) -> Row:
    """Row of a model whose matrices are truncated and rounded by a storage."""
    factors = bench.truncated(way, rank_map, all_ranks=all_ranks)
    with bench.replaced(bench.products(factors, storage)):
        found = bench.perplexity()
    return {"err": rank_map.err, "budget": rank_map.budget, "perplexity": found}


PRESENTED = ("recipe", "err_asked", "err", "budget", "perplexity")
TABLE1 = MeasuredExperiment(
    "table1",
    ErrSettings,
    Presentation(
        "Table 1: perplexity by effective rank reduction", PRESENTED, "err_asked", "perplexity"
    ),
    table1,
)
TABLE2 = MeasuredExperiment(
    "table2",
    ErrSettings,
    Presentation(
        "Table 2: SVDs that know activations, with uniform and WeLore's ranks",
        PRESENTED,
        "err_asked",
        "perplexity",
    ),
    table2,
)
