"""Methods that choose ranks: one file per method, and their registry."""
