"""Corpora, tokenizers and token windows: what a model is trained on."""
