"""Calibration: a model's blocks run on text one after the other, and statistics are taken."""
