"""Checkpoints at any address: their matrices, read one at a time without holding the rest."""
