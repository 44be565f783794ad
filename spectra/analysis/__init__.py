"""Labelled functions: the measures of `spectra.metrics` lifted over the dimensions of a store."""
