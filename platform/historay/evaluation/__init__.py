"""Judges predictions: pure functions from arrays to figures, plots and the report."""
