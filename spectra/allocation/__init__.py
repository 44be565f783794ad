"""Allocation: which rank each matrix gets, and what that costs and loses."""
