"""How a low-rank matrix lies in memory and on disk: each storage, and the registry of them."""
