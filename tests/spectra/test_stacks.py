"""Two stacks of blocks in one model: block 0 of one is not block 0 of the other."""

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

import spectra
from spectra.allocation.table import to_table
from spectra.matrices import block_labels, block_of, in_order, role_of
from spectra_data.errors import InputError


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A T5 whose encoder has heavy tails and whose decoder is noise."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=64, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_decoder_layers=2,
        num_heads=4, decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("encoder.block") and p.ndim == 2 and "bias" not in name:
                u, s, v = torch.linalg.svd(torch.randn(p.shape), full_matrices=False)
                p.copy_(u * torch.arange(1, len(s) + 1).float() ** -1 @ v)
    folder = tmp_path_factory.mktemp("t5")
    model.save_pretrained(folder / "m")
    return spectra.scan(folder / "m", folder / "s.zarr")


def test_averages_over_a_block_keep_stacks_apart(scan):
    made = spectra.allocate(scan, err=0.4, method="alpha")
    kept = {}
    for module in made.modules:
        kept.setdefault(block_of(module.name), []).append(module.rank / module.full_rank)
    assert len(kept) == 4
    means = {block: np.mean(values) for block, values in kept.items()}
    # heavier tails lose less
    assert min(means["encoder.block.0"], means["encoder.block.1"]) > 1.3 * max(
        means["decoder.block.0"], means["decoder.block.1"]
    )


def test_outliers_by_number_are_refused_where_they_do_not_tell_blocks_apart(scan):
    with pytest.raises(InputError, match="give them by path"):
        spectra.allocate(scan, err=0.4, method="owl", outliers={0: 0.1, 1: 0.2})
    paths = [f"{stack}.block.{n}" for stack in ("encoder", "decoder") for n in range(2)]
    shares = dict(zip(paths, (0.0, 0.01, 0.02, 0.03), strict=True))
    assert spectra.allocate(scan, err=0.4, method="owl", outliers=shares).modules


def test_tables_have_a_row_for_every_block_of_every_stack(scan):
    table = to_table(spectra.allocate(scan, err=0.4, method="uniform"))
    rows = [line for line in table.splitlines() if line.strip().startswith(("encoder", "decoder"))]
    assert [row[: row.index(" ", 10)].strip() for row in rows] == [
        "decoder 0", "decoder 1", "encoder 0", "encoder 1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["model.layers.0.a", "model.layers.10.b"], [0, 10]),
        (["encoder.block.0.a", "decoder.block.0.a"], ["encoder 0", "decoder 0"]),
        (
            ["model.vision_tower.encoder.layers.0.a", "model.language_model.layers.1.a"],
            ["vision_tower.encoder 0", "language_model 1"],
        ),
        (["h.0.a", "h.1.experts.3.b"], [0, 1]),
        (["a.layers.0.x", "a.b.layers.0.x"], ["layers 0", "b 0"]),
    ],
)
def test_blocks_are_called_by_what_tells_them_apart(names, labels):
    assert block_labels(names) == labels


def test_numbers_are_in_order_and_stacks_as_they_come():
    assert in_order([3, 1, 3, 2]) == [1, 2, 3]
    assert in_order(["decoder 1", "encoder 0", "decoder 1"]) == ["decoder 1", "encoder 0"]


def test_the_output_of_a_feed_forward_is_not_that_of_attention():
    assert role_of("encoder.block.0.layer.1.DenseReluDense.wo") == "wo"
    assert role_of("model.layers.0.attention.wo") == "o"
    assert role_of("layers.0.self_attn.wo") == "o"
    assert role_of("encoder.block.0.layer.0.SelfAttention.o") == "o"
