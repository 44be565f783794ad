"""The paper's results that need training, at the size that a machine allows."""
