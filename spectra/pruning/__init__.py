"""Pruning: zeros in place of the least important entries, by magnitude, Wanda or SparseGPT."""
