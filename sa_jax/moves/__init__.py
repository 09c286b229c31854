"""Proposals of new masks: swaps of two branches, each with its exact log proposal ratio."""

from sa_jax.moves.base import Estimates, Swap, SwapProposal, move_fn, swap_mask
from sa_jax.moves.informed import informed_swap
from sa_jax.moves.nudges import nudge
from sa_jax.moves.saliency import saliency_swap
from sa_jax.moves.uniform import swap_within, uniform_swap

__all__ = [
    "Estimates",
    "Swap",
    "SwapProposal",
    "informed_swap",
    "move_fn",
    "nudge",
    "saliency_swap",
    "swap_mask",
    "swap_within",
    "uniform_swap",
]
