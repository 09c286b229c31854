"""Computes the logits of one block of samples after a swap, with one function (path) per depth of the network."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sa_jax.annealing.landscape import batch_bound
from sa_jax.landscapes.mlp.ends import fan_out, places
from sa_jax.landscapes.mlp.layout import Layout
from sa_jax.landscapes.mlp.loops import CHUNKS, chunks, cut, dense, gather
from sa_jax.landscapes.mlp.state import Block, Changes, MlpState
from sa_jax.moves.base import Swap


class Parts(NamedTuple):
    """The part of the old logits and of the changes that belongs to one block of samples.

    Attributes:
      logits: logits before the swap.
      at_ends: see `Changes`.
      first: see `Changes`.
    """

    logits: jax.Array  # float32 [classes, block]
    at_ends: jax.Array  # float32 [2, block]
    first: jax.Array  # float32 [2, block]


def block_logits(
    layout: Layout, state: MlpState, swap: Swap, changes: Changes, changed: list[jax.Array], block: Block
) -> jax.Array:
    """Returns the logits of one block after the swap, float32 `[classes, block]`.

    In a network with at least three hidden layers, `state.cache.scratch` holds the changes of their activations.
    """
    logits = cut(state.cache.outputs[-1], (0, block.start), (layout.shapes[layout.head][1], block.size))
    at_ends = cut(changes.at_ends, (0, block.start), (2, block.size))
    first = cut(changes.first, (0, block.start), (2, block.size))
    return PATHS[layout.path](layout, state, swap, changes, changed, block, Parts(logits, at_ends, first))


def narrow(layout, state, swap, changes, changed, block, parts):
    """Computes the narrow second hidden layer and the logits completely."""
    del changed
    second = cut(state.cache.outputs[1], (0, block.start), (layout.shapes[1][1], block.size))
    factors = jnp.concatenate([changes.leaving, places(layout, swap, 1)])
    rows = jnp.concatenate([parts.first, parts.at_ends])
    second = second + sum(factors[j][:, None] * rows[j][None] for j in range(4))
    kernel = fan_out(layout, state.position, swap, layout.head, jnp.arange(layout.shapes[1][1]))
    return dense(kernel, layout.network.biases[layout.head], layout.act(second))


def no_hidden_layer(layout, state, swap, changes, changed, block, parts):
    """Adds the changes that the branches of the swap cause in the logits."""
    del state, changes, changed, block
    return _with_ends(layout, swap, parts)


def one_hidden_layer(layout, state, swap, changes, changed, block, parts):
    """Adds the changes of the one or two hidden units that change."""
    del state, changed, block
    return _with_ends(layout, swap, parts) + changes.leaving.T @ parts.first


def two_hidden_layers(layout, state, swap, changes, changed, block, parts):
    """Computes the changes of the second hidden layer and adds them to the logits, a chunk of units at a time."""
    logits = _with_ends(layout, swap, parts)
    sources = jnp.concatenate([parts.first, parts.at_ends])
    coefficients = jnp.concatenate([changes.leaving, places(layout, swap, 1)])

    def add(units, real, logits):
        old = gather(state.cache.outputs[1], units, block)
        factors = jnp.where(real[None], coefficients[:, units], 0)
        new = old + sum(factors[j][:, None] * sources[j][None] for j in range(4))
        change = layout.act(new) - layout.act(old)
        kernel = fan_out(layout, state.position, swap, layout.head, units)
        return logits + dense(kernel, None, change)

    return chunks(changed[-1], CHUNKS, add, logits)


def deep(layout, state, swap, changes, changed, block, parts):
    """Adds the changes of the last hidden layer, which are in the scratch."""
    del changes
    logits = _with_ends(layout, swap, parts)

    def add(units, real, logits):
        change = jnp.where(real[:, None], gather(state.cache.scratch[-1], units, block), 0)
        kernel = fan_out(layout, state.position, swap, layout.head, units)
        return logits + dense(kernel, None, change)

    return chunks(changed[-1], CHUNKS, add, logits)


PATHS = {
    "narrow": narrow,
    "no hidden layer": no_hidden_layer,
    "one hidden layer": one_hidden_layer,
    "two hidden layers": two_hidden_layers,
    "deep": deep,
}


def _with_ends(layout: Layout, swap: Swap, parts: Parts) -> jax.Array:
    """Returns the logits with the changes from branches of the swap that lie in the last layer."""
    place = places(layout, swap, layout.head)
    direct = batch_bound((place != 0).any().astype(jnp.int32)) > 0
    return jax.lax.cond(direct, lambda: parts.logits + place.T @ parts.at_ends, lambda: parts.logits)
