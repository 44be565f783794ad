"""A module for each page; `registry` lists them."""
