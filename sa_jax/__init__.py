"""Simulated annealing of network structure, in JAX."""

from sa_jax.anneal import anneal
from sa_jax.landscape import from_energy
from sa_jax.pruning import prune
from sa_jax.schedules import calibrate, constant, cosine, geometric, linear, logarithmic
from sa_jax.types import AnnealResult, InputError, Landscape, Trace

__all__ = [
    "AnnealResult",
    "InputError",
    "Landscape",
    "Trace",
    "anneal",
    "calibrate",
    "constant",
    "cosine",
    "from_energy",
    "geometric",
    "linear",
    "logarithmic",
    "prune",
]
