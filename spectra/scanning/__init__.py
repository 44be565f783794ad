"""Scans: the spectra of all matrices of finished checkpoints, as a store."""
