"""Checkpoints as transformers has them: the modules they fill, and whether they fill them."""
