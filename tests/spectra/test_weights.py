"""Files of weights: who may read them."""

import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from spectra.calibration.store import save_tensors
from spectra.cli import main
from spectra.store.weights import share, write_weights
from tests.modes import unusual_modes
from tests.spectra.checkpoints import saved


@pytest.fixture(params=[0o027, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_files_of_weights_follow_the_umask(umask, tmp_path):
    file = tmp_path / "a.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3).mT}
    write_weights(file, tensors, {"format": "pt"})
    assert mode(file) == 0o666 & ~umask
    assert torch.equal(load_file(file)["a"], tensors["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_what_a_library_wrote_follows_the_umask(umask, tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    outside = tmp_path.parent / f"outside-{umask}"
    outside.touch(mode=0o600)
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "below").mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "below/a.safetensors")
    share(tmp_path)
    assert mode(tmp_path / "a.safetensors") == mode(tmp_path / "below/a.safetensors")
    assert mode(tmp_path / "a.safetensors") == 0o666 & ~umask
    assert mode(outside) == 0o600


def test_commands_write_files_that_follow_the_umask(umask, tmp_path):
    model, small = tmp_path / "model", tmp_path / "small"
    saved(model)
    commands = [
        ["compress", model, "--budget", "0.8", "--method", "svd", "--out", small],
        ["merge", small, "--out", tmp_path / "merged"],
        [
            "prune",
            model,
            "--sparsity",
            "0.5",
            "--method",
            "magnitude",
            "--out",
            tmp_path / "pruned",
        ],
    ]
    for command in commands:
        assert main([str(word) for word in command]) == 0
        assert not unusual_modes(command[-1])
    save_tensors(tmp_path / "cache/text.safetensors", {"a": torch.zeros(2)}, {})
    assert not unusual_modes(tmp_path / "cache")
