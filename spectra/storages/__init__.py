"""How a low-rank matrix is kept in memory and on disk: each storage, and their registry."""
