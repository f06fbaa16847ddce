"""Serves a bundle over HTTP and predicts with it in batches."""
