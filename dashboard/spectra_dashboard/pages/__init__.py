"""A module for each page: `key`, what of the view it is laid out by; `layout`; `register`."""

from spectra_dashboard.pages import compare, dynamics, path, ranks, runs, tails

PAGES = {
    "runs": runs,
    "dynamics": dynamics,
    "tails": tails,
    "ranks": ranks,
    "path": path,
    "compare": compare,
}
