"""What tests share: the shared material, a small model, a browser."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from spectra.record.recorder import record


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Tests compute into a cache of their own, kept for the session."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["SPECTRA_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared texts and checkpoints."""
    folder = Path(os.environ.get("SPECTRA_SHARED", "../shared")).resolve()
    if not (folder / "data").exists():
        if os.environ.get("SPECTRA_REQUIRE_SHARED"):
            pytest.fail(f"the shared material is not at {folder} (SPECTRA_SHARED)")
        pytest.skip(f"the shared material is not at {folder} (SPECTRA_SHARED)")
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        if os.environ.get("SPECTRA_REQUIRE_BROWSER"):
            pytest.fail("no Chromium on the PATH")
        pytest.skip("no Chromium on the PATH")
    return found


def small_llama(seed: int = 0, **changes) -> LlamaForCausalLM:
    """A LLaMA of two layers with grouped queries: four shapes of matrices."""
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**sizes | changes))


def random_batch(seed: int, windows: int = 4, length: int = 16) -> torch.Tensor:
    """Token ids for `small_llama`: (windows, length)."""
    return torch.from_numpy(np.random.default_rng(seed).integers(64, size=(windows, length)))


def train(model, optimizer, steps, first=0, recorder=None):
    """A plain loop on random batches that depend on the step alone."""
    for step in range(first, first + steps):
        batch = random_batch(100 + step)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        if recorder is not None:
            recorder.log(loss=loss.item(), tokens=(step + 1) * batch.numel())
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture
def store(tmp_path) -> Path:
    """A store of 7 steps with snapshots at 0, 3, 6 and 7."""
    path = tmp_path / "run.zarr"
    model = small_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    attrs = {"model": "small", "config": {"data": "random <tokens>"}}
    with record(
        model, optimizer, path, probe=random_batch(0), every=3, steps=7, sketch=256, attrs=attrs
    ) as recorder:
        train(model, optimizer, 7, recorder=recorder)
        recorder.log_validation(4.0)
    return path
