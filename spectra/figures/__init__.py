"""Figures: pure functions from arrays to plotly figures, shared by the report and the dashboard."""
