"""From images to an immutable, split and checked data set version, and back out as training batches."""
