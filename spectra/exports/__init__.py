"""Rank maps in the formats of other tools."""
