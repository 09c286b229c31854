"""Prunes networks by annealing: a multilayer perceptron, chosen kernels of any model, or linear layers."""

from sa_jax.pruning.allocation import allocate
from sa_jax.pruning.kernels import prune_kernels
from sa_jax.pruning.layers import prune_layers
from sa_jax.pruning.linear import compact, prune_linear, prune_linear_sharded
from sa_jax.pruning.mlp import prune
from sa_jax.pruning.moments import Moments, collect_moments, collect_recorded, dense_correction
from sa_jax.pruning.options import Options, check_options, samples_for, uses_gradients
from sa_jax.pruning.problem import (
    Problem,
    make_energy,
    make_landscape,
    make_schedule,
    prepare,
    refresh_steps,
    start_position,
)
from sa_jax.pruning.refitting import Refitted, refit, refit_layer

__all__ = [
    "Moments",
    "Options",
    "Problem",
    "Refitted",
    "allocate",
    "check_options",
    "collect_moments",
    "collect_recorded",
    "compact",
    "dense_correction",
    "make_energy",
    "make_landscape",
    "make_schedule",
    "prepare",
    "prune",
    "prune_kernels",
    "prune_layers",
    "prune_linear",
    "prune_linear_sharded",
    "refit",
    "refit_layer",
    "refresh_steps",
    "samples_for",
    "start_position",
    "uses_gradients",
]
