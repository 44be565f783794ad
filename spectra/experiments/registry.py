"""The experiments that `spectra experiment` runs.

A new one is a file with its settings and its description, and a line here.
"""

from collections.abc import Mapping
from dataclasses import fields

from spectra.experiments.experiment import Experiment
from spectra.registry import Entry, Registry

EXPERIMENTS: Registry[Experiment] = Registry(
    "experiment",
    {
        "table1": Entry(
            "perplexity by ERR for uniform, OWL and WeLore", "spectra.experiments.tables:TABLE1"
        ),
        "table2": Entry(
            "SVDs that know activations, with uniform and WeLore's ranks",
            "spectra.experiments.tables:TABLE2",
        ),
        "table3": Entry(
            "memory for inference by ERR and context",
            "spectra.experiments.inference_memory:TABLE3",
        ),
        "figure7": Entry("pruning what stayed dense", "spectra.experiments.pruning:FIGURE7"),
        "quality": Entry(
            "the public ways to make a model of a size and ours, at equal parameters",
            "spectra.experiments.quality:QUALITY",
        ),
        "figure1": Entry(
            "finetuning LRCs alone against everything",
            "spectra_pretrain.experiments.figures:FIGURE1",
        ),
        "figure5": Entry("LRCs against N-LRCs", "spectra_pretrain.experiments.figures:FIGURE5"),
        "table4": Entry(
            "LoRA, GaLore and WeLore by ERR", "spectra_pretrain.experiments.tables:TABLE4"
        ),
        "table5": Entry(
            "six tasks, dense and compressed", "spectra_pretrain.experiments.tables:TABLE5"
        ),
        "figure8": Entry(
            "one task by LRCs, all weights, LoRA", "spectra_pretrain.experiments.figures:FIGURE8"
        ),
    },
)


_IN_REPORT = "`spectra report STORE` draws it"
_OF_RUN = f"{_IN_REPORT}, from the store of a run, e.g. of `spectra pretrain`"
_OF_SCAN = f"{_IN_REPORT}, from the store of a run or of `spectra scan`; so does the dashboard"
ELSEWHERE: Mapping[str, str] = {
    "figure2": _OF_RUN,
    "figure3": _OF_RUN,
    "figure4": _OF_SCAN,
    "figure6": _OF_SCAN,
}
"""Figures of the paper that no experiment measures, and what draws them."""


def owners_of(field: str) -> list[str]:
    """Names of the experiments that have an option `field`.

    Examples
    --------
    >>> owners_of("memory_errs")
    ['table3']
    """
    return [
        name
        for name in EXPERIMENTS
        if field in {f.name for f in fields(EXPERIMENTS[name].settings)}
    ]
