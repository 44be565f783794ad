"""The dashboard: every store and rank map below a folder, live, in a browser."""
