"""What tests share: the shared material, a browser, a recorded store."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from playwright.sync_api import sync_playwright

from spectra.recording.start import record
from tests.chromium import found, launched
from tests.small import random_batch, small_llama, train


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Tests compute into a cache of their own, kept for the session."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["SPECTRA_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def disk():
    """Files are not brought to the disk: that shows after a power cut alone, and takes its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


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
    path = found()
    if path is None:
        if os.environ.get("SPECTRA_REQUIRE_BROWSER"):
            pytest.fail("no Chromium on the PATH")
        pytest.skip("no Chromium on the PATH")
    return path


@pytest.fixture(scope="session")
def browser(chromium):
    """A headless browser, one for all tests."""
    with sync_playwright() as playwright:
        browser = launched(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def recorded_store(tmp_path_factory) -> Path:
    """A store of 7 steps with snapshots at 0, 3, 6 and 7; to be read alone."""
    path = tmp_path_factory.mktemp("recorded") / "run.zarr"
    model = small_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    attrs = {"model": "small", "config": {"data": "random <tokens>"}}
    with record(
        model, optimizer, path, probe=random_batch(0), every=3, steps=7, sketch=256, attrs=attrs
    ) as recorder:
        train(model, optimizer, 7, recorder=recorder)
        recorder.log_validation(4.0)
    return path


@pytest.fixture
def store(recorded_store, tmp_path) -> Path:
    """A copy of `recorded_store`, to be changed."""
    return Path(shutil.copytree(recorded_store, tmp_path / "run.zarr"))


@pytest.fixture(scope="session")
def raw_store(tmp_path_factory) -> Path:
    """As `recorded_store`, with raw gradients and subspaces of rank 3; to be read alone."""
    path = tmp_path_factory.mktemp("raw") / "run.zarr"
    model = small_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    options = {"every": 3, "steps": 7, "sketch": 256, "gradients": True, "subspaces": 3}
    with record(model, optimizer, path, probe=random_batch(0), **options) as recorder:
        train(model, optimizer, 7, recorder=recorder)
    return path
