"""One HTML file with all figures of a store, which opens without a network.

The page holds plotly's script, the figures' templates (from `spectra.figures`, so the report and
the dashboard look alike) and the data of every matrix; the page itself lets the reader choose other
matrices.
"""
