"""Finetuning on the one training loop: what is trained, on what, and what is saved."""
