"""Checkpoints, wherever they lie: their matrices one at a time, without holding the rest."""
