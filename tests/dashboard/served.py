"""A dashboard that is served, stores to show, and what a browser has drawn."""

import contextlib
import threading

import numpy as np

from dashboard.access.library import Library
from dashboard.server import listen
from spectra.matrices import Matrix
from spectra.store.layout import Contents, Layout
from spectra.store.writer import StoreWriter

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


DATA = """id => {
  const graph = document.getElementById(id)?.querySelector('.js-plotly-plot');
  const plain = (v) => v && v.bdata ? null : v;
  return graph?.data?.map(t => ({type: t.type, name: t.name, x: Array.from(plain(t.x) ?? []),
    y: Array.from(plain(t.y) ?? []), text: t.text,
    z: t.z && !t.z.bdata ? Array.from(t.z, row => Array.from(row)) : null})) ?? [];
}"""
"""What a figure was given, as plain numbers; typed arrays that Plotly was given are in `CALC`."""
CALC = """id => {
  const graph = document.getElementById(id)?.querySelector('.js-plotly-plot');
  return (graph?._fullData ?? []).map(t => ({type: t.type, name: t.name, visible: t.visible,
    x: Array.from(t.x ?? []), y: Array.from(t.y ?? []),
    z: t.z ? Array.from(t.z, row => Array.from(row)) : null, text: t.text}));
}"""
"""What a figure draws: its traces as Plotly has them after reading what it was given."""


def drawn(page, identity):
    """The traces of a figure, once it has some."""
    page.wait_for_function(f"id => ({CALC})(id).some(t => t.x.length || t.z)", arg=identity)
    return page.evaluate(CALC, identity)


def panel(kind, matrix):
    """The identity of a panel's figure, as Dash writes it."""
    return f'{{"key":"{kind}|{matrix}","type":"panel"}}'
