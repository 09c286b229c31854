"""What all swaps share: the mask after a swap, and moves on positions that hold only a mask."""

import jax
import jax.numpy as jnp

from sa_jax.moves.base import Swap, move_fn, swap_mask
from sa_jax.moves.nudges import nudge
from sa_jax.moves.uniform import uniform_swap
from tests.conftest import refusal


def test_swap_mask_leaves_a_rejected_mask_alone():
    mask = jnp.array([True, False, True])
    swap = Swap(jnp.int32(0), jnp.int32(1), jnp.zeros(2, jnp.int32))
    assert swap_mask(mask, swap).tolist() == [False, True, True]
    assert swap_mask(mask, swap, jnp.bool_(False)).tolist() == [True, False, True]


def test_moves_on_masks_refuse_nudges():
    swaps = nudge(uniform_swap(), jnp.ones(4))
    mask = jnp.arange(4) < 2
    with refusal("(mask, state)", "without nudge"):
        move_fn(swaps)(jax.random.key(0), (mask, swaps.init(mask)))
