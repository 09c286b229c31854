"""Reads and writes data sets, weights, masks and results, without pickle."""

from sa_jax.files.datasets import load_dataset
from sa_jax.files.weights import load, masks_like, put_back, write_pruned

__all__ = ["load", "load_dataset", "masks_like", "put_back", "write_pruned"]
