"""Allocation: the rank of each matrix, its cost and its truncation error."""
