"""Zeros for what matters least: magnitude, Wanda, SparseGPT."""
