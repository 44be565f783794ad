"""From a rank map to a smaller checkpoint: truncation, storage, the files and how they load."""
