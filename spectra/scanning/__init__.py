"""Scans: the spectra of every matrix of finished checkpoints, as a store."""
