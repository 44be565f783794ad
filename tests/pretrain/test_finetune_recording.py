"""Recording while finetuning: every method records the matrices, with what was trained in them."""

import numpy as np
import pytest
import torch

import spectra
from spectra.matrices import find_matrices
from spectra.models.loading import load_whole
from spectra_pretrain.finetuning.run import finetune
from tests.pretrain.test_finetune import PEFT, checkpoints, config_file, rank_map
from tests.pretrain.tuned import tuned

__all__ = ["checkpoints", "rank_map"]


OFTEN = ("lrc",)
SELDOM = [m for m in dict.fromkeys(("galore", "lora", "dora", *PEFT)) if m not in OFTEN]


@pytest.mark.parametrize(
    "train", [*OFTEN, *(pytest.param(m, marks=pytest.mark.slow) for m in SELDOM)]
)
def test_what_is_recorded_last_is_what_is_saved(checkpoints, rank_map, inputs, tmp_path, train):
    named = config_file(tmp_path, train) if train in PEFT else train
    options = tuned(
        checkpoints["factors"], inputs["data"], train=named, record_every=2, learning_rate=1e-2
    )
    finetune(options, tmp_path / "run")
    run = spectra.open(tmp_path / "run/spectra.zarr")
    recorded = run["spectra"]
    saved, _ = find_matrices(load_whole(str(tmp_path / "run/model")).model)
    assert list(recorded.matrix.values) == [matrix.name for matrix in saved]
    assert {m.name for m in rank_map.modules} == {matrix.name for matrix in saved}
    # adalora cuts ranks once more after the last step, which is recorded before
    near = 1e-3 if train == "adalora" else 1e-4
    moved = 0
    for matrix, weight in saved.items():
        expected = torch.linalg.svdvals(weight.value.float())
        found = recorded.sel(matrix=matrix.name)
        np.testing.assert_allclose(
            found.weight[-1, : len(expected)], expected, rtol=1e-3, atol=near * expected[0].item()
        )
        assert np.isfinite(found.gradient[-1, 0])
        moved += not np.allclose(found.weight[-1], found.weight[0], rtol=1e-4, equal_nan=True)
    assert moved > 0
