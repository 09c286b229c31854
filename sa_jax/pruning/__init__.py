"""Prunes networks by annealing: a multilayer perceptron, chosen kernels of any model, or linear layers."""

from sa_jax.pruning.allocation import allocate
from sa_jax.pruning.kernels import prune_kernels
from sa_jax.pruning.layers import prune_layers
from sa_jax.pruning.linear import compact, prune_linear, prune_linear_sharded
from sa_jax.pruning.mlp import prune
from sa_jax.pruning.moments import Moments, collect_moments, collect_recorded, dense_correction
from sa_jax.pruning.options import Options, check_options, samples_for, score_steps, uses_gradients
from sa_jax.pruning.problem import (
    Problem,
    backend_of,
    calibrated_search,
    described_backend,
    guiding_energy,
    make_energy,
    make_landscape,
    make_schedule,
    prepare,
    refresh_steps,
    start_position,
    teacher_of,
)
from sa_jax.pruning.refitting import Refitted, refit, refit_layer
from sa_jax.pruning.scores import ScoreSettings, ScoreState, found_mask, score_search

__all__ = [
    "Moments",
    "Options",
    "Problem",
    "Refitted",
    "ScoreSettings",
    "ScoreState",
    "allocate",
    "backend_of",
    "calibrated_search",
    "check_options",
    "collect_moments",
    "collect_recorded",
    "compact",
    "dense_correction",
    "described_backend",
    "found_mask",
    "guiding_energy",
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
    "score_search",
    "score_steps",
    "start_position",
    "teacher_of",
    "uses_gradients",
]
