"""How parameters are updated: a file for each optimizer, and the registry of them."""
