"""Checkpoints as models of transformers: loaded, checked for completeness, with low-rank layers."""
