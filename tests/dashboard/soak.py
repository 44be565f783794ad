"""`make soak`: fifty stores, eight pages, ten minutes; does the server's memory stay flat?"""

import argparse
import itertools
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from spectra_dashboard.registry import PAGES
from spectra_dashboard.view import View
from tests.chromium import launched
from tests.dashboard.screenshots import made

STORES = 50
CLIENTS = 8
SAMPLE = 15.0


def resident(pid: int) -> float:
    """MB of memory that a process has."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def main() -> None:
    """Print the server's memory as time goes by, and by how much it grew over the second half."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made(folder)
        names = ["small.zarr", "7b.zarr"]
        for number in range(STORES - len(names)):
            source = names[number % 4 == 0]
            names.append(f"copy{number:02}.zarr")
            shutil.copytree(folder / source, folder / names[-1])
        program = [sys.executable, "-m", "spectra.cli", "dashboard", str(folder), "--port", "0"]
        server = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
        try:
            lines = [server.stdout.readline(), server.stdout.readline()]
            address = re.search(r"http://\S+", lines[1])[0].rstrip("/")
            print(f"{lines[0].strip()}; {CLIENTS} clients for {minutes:g} minutes")
            report(soak(address, names, server.pid, 60 * minutes))
        finally:
            server.terminate()
            server.wait(timeout=30)


Sample = tuple[float, float, int]


def soak(address: str, names: list[str], pid: int, seconds: float) -> list[Sample]:
    """(seconds, MB, pages looked at) as eight pages go from store to store."""
    rng, samples, looked = random.Random(0), [], 0
    started = time.monotonic()
    with sync_playwright() as playwright:
        browser = launched(playwright)
        pages = [browser.new_page() for _ in range(CLIENTS)]
        for page in itertools.cycle(pages):
            now = time.monotonic() - started
            if not samples or now - samples[-1][0] >= SAMPLE:
                samples.append((now, resident(pid), looked))
                print(f"{now:6.0f} s  {samples[-1][1]:7.1f} MB  {looked:5} pages", flush=True)
            if now > seconds:
                break
            view = View(
                page=rng.choice(list(PAGES)), run=rng.choice(names), other=rng.choice(names),
                value=round(rng.random(), 2), scale=rng.choice(["linear", "log"]),
            )  # fmt: skip
            page.goto(address + view.address())
            page.wait_for_timeout(400)
            looked += 1
        browser.close()
    return samples


def report(samples: list[Sample]) -> None:
    """How much the memory grew once everything had been looked at."""
    middle = samples[len(samples) // 2]
    last = samples[-1]
    growth = (last[1] - middle[1]) / (last[0] - middle[0]) * 60
    print(f"second half: {middle[1]:.1f} to {last[1]:.1f} MB, {growth:+.2f} MB a minute")


if __name__ == "__main__":
    main()
