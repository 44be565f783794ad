"""Reading stores and maps for the dashboard: found by name, read in parts, without Dash."""
