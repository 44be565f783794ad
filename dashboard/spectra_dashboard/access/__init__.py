"""What the dashboard reads: stores and maps found by name, read piece by piece, without Dash."""
