"""How parameters are updated: a file for each way, and the registry of them."""
