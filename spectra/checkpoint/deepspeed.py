"""The files of DeepSpeed's checkpoints: which hold whole weights, and which only partitions.

Stages 1 and 2 of ZeRO partition the optimizer's state and leave the module's weights whole, in
``mp_rank_00_model_states.pt``. Stage 3 partitions the weights, too, among files with pickled
classes of DeepSpeed, which only its own script joins.
"""

import re
from collections.abc import Sequence

from spectra_data.errors import InputError

FOLDER = re.compile(r"global_step\d+")
"""Name of the folder that DeepSpeed makes for a step."""
LATEST = "latest"
"""File with the name of the folder of the last step."""
_REFUSED = {
    re.compile(r"(bf16_)?zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt"): (
        "holds partitions of ZeRO stage 3: join them with DeepSpeed's script, which is next to "
        "the step's folder (python zero_to_fp32.py . joined --safe_serialization), and name the "
        "folder joined"
    ),
    re.compile(r"(bf16_)?zero_pp_rank_\d+_mp_rank_\d+_optim_states\.pt"): (
        "holds partitions of an optimizer's state and no whole weight: name the step's folder, or "
        "join them with DeepSpeed's script zero_to_fp32.py"
    ),
    re.compile(r"(layer_\d+_)?expert_\d+_mp_rank_\d+_(model|optim)_states\.pt"): (
        "holds an expert apart from the other weights: save the model whole, with save_pretrained"
    ),
    re.compile(r"layer_\d+-model_\d+-model_states\.pt"): (
        "holds one stage of a pipeline: save the model whole, with save_pretrained"
    ),
}


def require_whole(names: Sequence[str], *, named: bool = False) -> None:
    """Refuse files of DeepSpeed that hold parts of the weights.

    Parameters
    ----------
    names
        Files from which the weights would be read.
    named
        Whether the user named them; a partitioned optimizer next to whole weights is no obstacle.

    Raises
    ------
    InputError
        With what to do instead.
    """
    for pattern, why in _REFUSED.items():
        for name in names:
            if pattern.fullmatch(name) and (named or "optim_states" not in name):
                raise InputError(f"{name} {why}")
