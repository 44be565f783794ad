"""A dashboard that is served, stores to show, and what a browser has drawn."""

import contextlib
import threading

import numpy as np

from spectra.matrices import Matrix
from spectra.store.layout import Contents, Layout
from spectra.store.writer import StoreWriter
from spectra_dashboard.access.library import Library
from spectra_dashboard.server import listen

SMALL = tuple(
    Matrix(f"model.layers.0.x.{role}_proj", 0, role, 8, 8) for role in ("q", "k", "v", "o")
)
ROLES = {"q": 1, "k": 1, "v": 1, "o": 1, "gate": 2.6875, "up": 2.6875, "down": 2.6875}


@contextlib.contextmanager
def serving(folder):
    """The address of a dashboard over a folder."""
    library = Library(folder)
    listening = listen(library, port=0)
    thread = threading.Thread(target=listening.server.run, daemon=True)
    thread.start()
    try:
        yield listening.address.rstrip("/")
    finally:
        listening.server.task_dispatcher.shutdown(timeout=2)
        listening.server.close()


def write_scan(path, layers=32, size=4096, seed=0):
    """A scan of a LLaMA-shaped model with made-up spectra: 7B sizes by default."""
    matrices = tuple(
        Matrix(
            f"model.layers.{layer}.{'mlp' if aspect > 1 else 'self_attn'}.{role}_proj",
            layer,
            role,
            size if role == "down" else int(size * aspect),
            int(size * aspect) if role == "down" else size,
        )
        for layer in range(layers)
        for role, aspect in ROLES.items()
    )
    contents = Contents(spectra=("weight",), sketch=0)
    attrs = {"kind": "scan", "model": {"name": f"shaped-{size}", "format": "BF16"}}
    rng = np.random.default_rng(seed)
    exponents = rng.uniform(0.15, 1.2, len(matrices))[:, None]
    values = (np.arange(1, size + 1) ** -exponents).astype(np.float32)
    writer = StoreWriter.create(path, Layout(matrices, 1, 1, contents), attrs)
    writer.write_snapshot(0, {"spectra/weight": values})
    writer.describe({"begun": {"step": 0}})
    writer.close()
    return path


class Growing:
    """A run of a small model with made-up spectra and sketches, snapshot by snapshot."""

    def __init__(self, path, steps=None, sketch=16, **attrs):
        contents = Contents(spectra=("weight", "gradient"), sketch=sketch)
        self.attrs = {"kind": "run", "schedule": {"every": 1, "early": False, "at": None,
                                                  "steps": steps}}  # fmt: skip
        self.attrs |= attrs
        self.layout = Layout(SMALL, None if steps is None else steps + 1, steps, contents)
        self.path, self.sketch = path, sketch
        self.writer = StoreWriter.create(path, self.layout, self.attrs)
        self.rng = np.random.default_rng(0)

    def snapshots(self, count):
        """Add snapshots, each a step after the one before."""
        for _ in range(count):
            step = (self.writer.steps[-1] + 1) if self.writer.steps else 0
            spectrum = -np.sort(-self.rng.random((len(SMALL), 8)), axis=1).astype(np.float32)
            sketches = self.rng.normal(size=(len(SMALL), self.sketch)).astype(np.float32)
            arrays = {"spectra/weight": spectrum, "spectra/gradient": spectrum}
            self.writer.write_snapshot(step, arrays | {"sketches/gradient": sketches})

    def take_back(self, step):
        """As when the run is resumed after this step."""
        self.writer.close()
        self.writer = StoreWriter.resume(self.path, self.layout, self.attrs, step)

    def close(self):
        self.writer.close()


CALC = """id => {
  const graph = document.getElementById(id)?.querySelector('.js-plotly-plot');
  return (graph?._fullData ?? []).map(t => ({type: t.type, name: t.name, visible: t.visible,
    x: Array.from(t.x ?? []), y: Array.from(t.y ?? []),
    z: t.z ? Array.from(t.z, row => Array.from(row)) : null, text: t.text}));
}"""
"""What a figure draws: its traces as Plotly has them after reading what it was given."""


FOLLOW = """href => { history.pushState({}, '', href); window.scrollTo(0, 0);
  window.dispatchEvent(new PopStateEvent('popstate')); }"""


def go(page, address):
    """Open an address as a link inside the application does, with nothing left from before."""
    origin = "/".join(address.split("/")[:3])
    if page.url.startswith(origin):
        page.evaluate(FOLLOW, "/nowhere")
        nothing = page.get_by_text("There is no such page")
        nothing.wait_for()
        page.evaluate("sessionStorage.clear()")
        page.evaluate(FOLLOW, address.removeprefix(origin) or "/")
        nothing.wait_for(state="detached")
    else:
        page.goto(address)


def requests_from_now_on(page):
    """A list of the addresses that the page asks for, once those that are under way have ended."""
    asked = []
    page.on("request", lambda request: "favicon" in request.url or asked.append(request.url))
    before = -1
    while before != len(asked):
        before = len(asked)
        page.wait_for_timeout(300)
    asked.clear()
    return asked


def drawn(page, identity):
    """The traces of a figure, once it has some."""
    page.wait_for_function(f"id => ({CALC})(id).some(t => t.x.length || t.z)", arg=identity)
    return page.evaluate(CALC, identity)


def panel(kind, matrix):
    """The identity of a panel's figure, as Dash writes it."""
    return f'{{"key":"{kind}|{matrix}","type":"panel"}}'
