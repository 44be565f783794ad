"""From a rank map to a smaller checkpoint: calibration, truncation, and the files written."""
