"""The dashboard in a browser: how soon it opens, how fast the sliders answer, what a tick costs.

Measured in headless Chromium on the same machine; a 7B-shaped scan has 224 matrices of 4096 values.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

from spectra.matrices import Matrix
from spectra.store.layout import Contents, Layout
from spectra.store.writer import StoreWriter
from spectra_dashboard.view import View
from tests.chromium import launched
from tests.dashboard.served import CALC, panel, serving, write_scan

STORES = 50
MOVES = 40
SLIDE = """async (moves) => {
  const thumb = document.querySelector('[role=slider]'), times = [];
  const place = document.querySelector('#a-err');
  const graph = document.querySelector('#map-a .js-plotly-plot');
  const wait = (time) => new Promise((done) => setTimeout(done, time));
  const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  thumb.focus();
  for (let i = 0; i < moves; i++) {
    const key = i < moves / 2 ? 'ArrowRight' : 'ArrowLeft';
    const before = place.textContent, z = graph.data[0].z, started = performance.now();
    thumb.dispatchEvent(new KeyboardEvent('keydown', {key, code: key, bubbles: true}));
    while (place.textContent === before || graph.data[0].z === z) await wait(1);
    await painted();
    times.push(performance.now() - started);
    await wait(500);
  }
  return times;
}"""


def run() -> list[dict[str, object]]:
    """Milliseconds and bytes."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = Path(temporary)
        write_scan(folder / "7b.zarr")
        for number in range(STORES - 1):
            write_scan(folder / f"{number:02}.zarr", layers=4, size=256, seed=number)
        browser = launched(playwright)
        page = browser.new_page(viewport={"width": 1280, "height": 900}, bypass_csp=True)
        with serving(folder) as address:
            rows += [
                {"what": f"table of {STORES} stores, {what}", "unit": "ms",
                 "median": opened(page, address)}
                for what in ("first time", "again")
            ]  # fmt: skip
            for beside in ("", "uniform"):
                page.goto(address + View(page="ranks", run="7b.zarr", beside=beside).address())
                page.wait_for_function(f"id => ({CALC})(id).some(t => t.z)", arg="map-a")
                page.wait_for_timeout(3_000)
                times = page.evaluate(SLIDE, MOVES)
                what = "slider on a 7B scan, " + ("two methods" if beside else "one method")
                rows.append({"what": what, "unit": "ms", "median": statistics.median(times)})
        rows += ticks(page, folder)
        browser.close()
    return rows


def opened(page: Page, address: str) -> float:
    """Milliseconds until the rows are there."""
    started = time.perf_counter()
    page.goto(address)
    page.locator(".ag-center-cols-container .ag-row").first.wait_for()
    return 1000 * (time.perf_counter() - started)


def ticks(page: Page, folder: Path) -> list[dict[str, object]]:
    """Bytes of an answer with nothing new, and with a snapshot more, of a run with 200."""
    matrices = tuple(Matrix(f"model.layers.0.x.{r}_proj", 0, r, 768, 768) for r in "qkvo")
    contents = Contents(spectra=("weight", "gradient"), sketch=64)
    writer = StoreWriter.create(folder / "run.zarr", Layout(matrices, None, None, contents), {})
    rng = np.random.default_rng(0)

    def snapshot(step: int) -> None:
        values = -np.sort(-rng.random((4, 768)).astype(np.float32), axis=1)
        sketches = rng.normal(size=(4, 64)).astype(np.float32)
        writer.write_snapshot(step, {"spectra/weight": values, "spectra/gradient": values,
                                     "sketches/gradient": sketches})  # fmt: skip

    for step in range(200):
        snapshot(step)
    sent: list[tuple[str, int]] = []

    def finished(request: object) -> None:
        text = request.post_data or ""
        if '"output"' in text:
            answer = request.response()
            size = int(answer.headers.get("content-length", 0)) if answer else 0
            sent.append((json.loads(text)["output"], size))

    page.on("requestfinished", finished)
    with serving(folder) as address:
        page.goto(address + View(page="dynamics", run="run.zarr").address())
        page.wait_for_function(
            f"id => ({CALC})(id).some(t => t.z)", arg=panel("cosine", matrices[0].name)
        )
        page.wait_for_timeout(4_000)
        first = sum(size for _, size in sent)
        sent.clear()
        page.wait_for_timeout(6_500)
        idle = [size for _, size in sent]
        sent.clear()
        snapshot(200)
        page.wait_for_timeout(6_500)
        rows = [size for output, size in sent if '"rows"' in output and size]
    writer.close()
    unit = {"unit": "bytes"}
    return [
        {"what": "first view of a run of 200 snapshots", "median": float(first)} | unit,
        {"what": "tick with nothing new", "median": statistics.median(idle or [0])} | unit,
        {"what": "tick with a snapshot more, rows of all figures in sight",
         "median": float(sum(rows))} | unit,
    ]  # fmt: skip
