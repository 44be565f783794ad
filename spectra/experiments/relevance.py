"""Which experiments a setting is of, so that one which would do nothing is refused."""

from spectra.compression.settings import METHODS
from spectra.experiments.settings import Settings
from spectra.experiments.tuning import Tuning
from spectra_data.errors import InputError

MEASURED = ("table1", "table2", "figure7", "quality")
"""On windows of text."""
TUNED_ON_TEXT = ("figure1", "figure5", "table4")
TUNED_ON_TASKS = ("figure8", "table5")
TUNED = (*TUNED_ON_TEXT, *TUNED_ON_TASKS)
CALIBRATED = ("calibration", "calibration_windows", "batch_size", "seed")
"""Of compression that knows activations."""
ONLY_OF = {
    "data": (*MEASURED, "table3", *TUNED_ON_TEXT),
    "errs": ("table1", "table2"),
    "windows": MEASURED,
    "stored": (*MEASURED, "table3"),
    "budgets": ("quality",),
    "memory_errs": ("table3",),
    "contexts": ("table3",),
    "pruned_errs": ("figure7",),
    "sparsities": ("figure7",),
    "pruners": ("figure7",),
    "train_data": TUNED_ON_TEXT,
    "steps": TUNED,
    "tuning_batch": TUNED,
    "learning_rate": TUNED,
    "tuning_err": ("figure1", "figure5", "figure8"),
    "tuning_errs": ("table4",),
    "task_errs": ("table5",),
    "compression": TUNED,
    "tasks": ("table5",),
    "figure8_task": ("figure8",),
    "task_data": TUNED_ON_TASKS,
    "questions": TUNED_ON_TASKS,
    "seeds": TUNED,
    "lora_rank": ("figure8", "table4", "table5"),
    "galore_rank": ("table4", "table5"),
    "precision": TUNED,
}


def require_used(name: str, settings: Settings, tuning: Tuning) -> None:
    """Require that an experiment uses every setting that is given.

    Raises
    ------
    InputError
        When one would do nothing, with the experiments that it is of.
    """
    for given, default in ((settings, Settings()), (tuning, Tuning())):
        for field, used in ONLY_OF.items():
            if not hasattr(given, field) or name in used:
                continue
            if getattr(given, field) != getattr(default, field):
                option = f"--{field.replace('_', '-')}"
                raise InputError(f"{option} goes with {', '.join(used)}, not {name}: leave it out")
    if name in TUNED and tuning.compression == "svd":
        for field in CALIBRATED:
            if getattr(settings, field) != getattr(Settings(), field):
                also = ", and --seeds repeats runs" if field == "seed" else ""
                raise InputError(
                    f"--{field.replace('_', '-')} goes with --compression "
                    f"{', '.join(m for m in METHODS if m != 'svd')}{also}: leave it out"
                )
