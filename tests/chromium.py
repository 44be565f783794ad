"""The browser that tests look with."""

import shutil
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")


def found() -> str | None:
    """Path of a Chromium on this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def launched(playwright: Any) -> Any:
    """A headless browser."""
    return playwright.chromium.launch(executable_path=found(), args=list(ARGUMENTS))
