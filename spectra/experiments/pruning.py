"""The paper's figure 7: pruning what stayed dense."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from spectra.experiments.experiment import Presentation
from spectra.experiments.ledger import Ledger, Row
from spectra.experiments.measured import MeasuredExperiment, Setup
from spectra.experiments.settings import Check, PerplexitySettings
from spectra.keywords import Share
from spectra.pruning.methods import METHODS

if TYPE_CHECKING:
    import torch

    from spectra.experiments.bench import Bench
    from spectra.pruning.pruner import Pruner


@dataclass(frozen=True)
class PruningSettings(PerplexitySettings):
    """Options of figure 7."""

    pruned_errs: tuple[Share, ...] = (0.0, 0.1, 0.3, 0.5)
    """Effective rank reductions to measure; at 0 every matrix is pruned."""
    sparsities: tuple[Share, ...] = (0.2, 0.4, 0.5, 0.6)
    """Shares of zeros to prune to."""
    pruners: tuple[str, ...] = ("magnitude", "wanda", "sparsegpt")
    """Methods of pruning."""

    def checks(self) -> list[Check]:
        """Checks of the settings."""
        known = ", ".join(METHODS)
        return [
            *super().checks(),
            *((p not in METHODS, f"no pruner {p!r}; there are: {known}") for p in self.pruners),
        ]


def figure7(setup: Setup, ledger: Ledger) -> Iterator[Row]:
    """Increase of perplexity when the matrices that stayed dense are pruned, by sparsity."""
    from spectra.experiments.bench import Bench
    from spectra.pruning.pruner import Pruner
    from spectra.pruning.sparsity import Pattern

    bench = Bench(setup)
    windows = bench.calibration_windows()
    for err in setup.settings.pruned_errs:
        weights, names = _compressed(bench, err)
        with bench.replaced(weights):
            base = ledger.cell(
                {"err": err, "pruner": "none", "sparsity": 0.0},
                lambda: {"perplexity": bench.perplexity(), "pruned": 0},
            )
        yield base
        for method in setup.settings.pruners:
            for sparsity in setup.settings.sparsities:
                pruner = Pruner(method, Pattern(sparsity), names)
                row = ledger.cell(
                    {"err": err, "pruner": method, "sparsity": sparsity},
                    partial(_pruned, bench, weights, pruner, windows),
                )
                yield row | {"increase": row["perplexity"] - base["perplexity"]}


def _compressed(bench: "Bench", err: float) -> "tuple[dict[str, torch.Tensor], frozenset[str]]":
    """Products of WeLore's LRCs, and the names of the matrices that stayed dense."""
    if err == 0:
        return {}, frozenset(bench.modules)
    rank_map = bench.allocated("welore", err=err)
    products = bench.products(bench.truncated("svd", rank_map, all_ranks=False))
    return products, frozenset(m.name for m in rank_map.nlrc)


def _pruned(
    bench: "Bench",
    weights: "dict[str, torch.Tensor]",
    pruner: "Pruner",
    windows: "torch.Tensor",
) -> Row:
    from spectra.calibration.blocks import Blocks
    from spectra.models.loading import Loaded

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


def _label(row: Row) -> str:
    return f"{row['pruner']}, ERR {row['err']:.0%}"


FIGURE7 = MeasuredExperiment(
    "figure7",
    PruningSettings,
    Presentation(
        "Figure 7: increase of perplexity when what stayed dense is pruned",
        ("err", "pruner", "sparsity", "perplexity", "increase"),
        "sparsity",
        "increase",
        "share of zeros",
    ),
    figure7,
    _label,
)
