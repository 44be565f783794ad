"""The paper's tables and figures, at the size that a machine allows."""
