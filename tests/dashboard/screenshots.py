"""`make screenshots`: every page in both themes and widths, to be looked at.

Of the stores below a folder, or else of a small run and a scan of a 7B-shaped model made for this.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from playwright.sync_api import Page, sync_playwright

import spectra
from spectra.allocation.path import write_path
from spectra_dashboard.access.library import Library
from spectra_dashboard.registry import PAGES
from spectra_dashboard.view import View
from tests.chromium import launched
from tests.dashboard.served import serving, write_scan
from tests.small import random_batch, small_llama, train

OUT = Path("artefacts/dashboard")
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
SETTLE = 1_500
SLIDER = (0.2, 0.35, 0.5, 0.65, 0.8)


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="whose stores are shown")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or made(Path(temporary))
        run, scan = chosen(folder)
        with serving(folder) as address, sync_playwright() as playwright:
            browser = launched(playwright)
            for theme in ("light", "dark"):
                for width, (w, h) in SIZES.items():
                    page = browser.new_page(viewport={"width": w, "height": h}, color_scheme=theme)
                    for name in PAGES:
                        shown = scan if PAGES[name].made_for == "scan" else run
                        view = View(page=name, run=shown)
                        picture(page, address + view.address(), options.out,
                                f"{name}-{theme}-{width}")  # fmt: skip
                    page.close()
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            for value in SLIDER:
                view = View(page="ranks", run=scan, value=value)
                picture(page, address + view.address(), options.out, f"slider-{value:.2f}")
            browser.close()
    print(f"wrote {len(list(options.out.glob('*.png')))} pictures to {options.out}")


def picture(page: Page, address: str, out: Path, name: str) -> None:
    """The whole page, after everything in it came into sight once."""
    page.goto(address)
    page.wait_for_timeout(2 * SETTLE)
    height = page.evaluate("document.documentElement.scrollHeight")
    for top in range(0, height, 600):
        page.evaluate(f"window.scrollTo(0, {top})")
        page.wait_for_timeout(SETTLE)
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_timeout(SETTLE // 3)
    page.screenshot(path=out / f"{name}.png", full_page=True)


def chosen(folder: Path) -> tuple[str, str]:
    """The run and the scan that are shown: the last of each."""
    runs = Library(folder).runs.values()
    kinds = {run.name: run.attributes().get("kind") for run in runs}
    of = {kind: [name for name, k in kinds.items() if k == kind] for kind in ("run", "scan")}
    return (of["run"] or of["scan"])[-1], (of["scan"] or of["run"])[-1]


def made(folder: Path) -> Path:
    """A small run with everything recorded, a scan of a 7B-shaped model, and a map."""
    model = small_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    options = {"every": 3, "steps": 60, "sketch": 256, "gradients": True, "subspaces": 3}
    with spectra.record(
        model, optimizer, folder / "small.zarr", probe=random_batch(0), **options
    ) as recorder:
        train(model, optimizer, 60, recorder=recorder)
    write_scan(folder / "7b.zarr")
    write_path(folder / "7b.zarr")
    spectra.allocate(folder / "7b.zarr", err=0.5).save(folder / "map.json")
    return folder


if __name__ == "__main__":
    main()
