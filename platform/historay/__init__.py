"""Historay: train, search, judge and serve image classifiers for cancer histology."""
