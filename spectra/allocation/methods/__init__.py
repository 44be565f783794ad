"""How ranks are chosen: a file for each method, and the registry of them."""
