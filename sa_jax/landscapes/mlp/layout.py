"""What stays the same for all states of a landscape: the network, its shapes, the path of a proposal."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sa_jax.moves.base import SwapProposal
from sa_jax.networks.energies import Energy
from sa_jax.networks.mlp import ACTIVATIONS, Network, check_activation
from sa_jax.types import PyTree

# Measured on x86 with AVX2; it does not change what is computed.
# A second layer so narrow is updated whole: finding its changed rows would cost more.
NARROW = 32


class Layout(NamedTuple):
    """The fixed part of a landscape.

    Attributes:
      network: the fixed weights.
      swaps: the proposals.
      energy: of the logits.
      act: the activation function.
      moves_weights: whether positions are `Weighted`.
      weights: of the branches of each layer, float32 `[inputs * outputs]` each.
      shapes: `(inputs, outputs)` of each layer.
      starts: number of the first branch of each layer, and the number of all branches.
      head: index of the last layer.
      path: how a proposal reaches the logits, one of the keys of `logits.PATHS`.
    """

    network: Network
    swaps: SwapProposal
    energy: Energy
    act: Callable[[jax.Array], jax.Array]
    moves_weights: bool
    weights: list[jax.Array]  # float32 [inputs * outputs]
    shapes: list[tuple[int, int]]
    starts: list[int]
    head: int
    path: str

    @property
    def narrow(self) -> bool:
        """Whether the second of two hidden layers is updated whole."""
        return self.path == "narrow"


def layout_of(
    network: Network, swaps: SwapProposal, energy: Energy, activation: str, moves_weights: bool
) -> Layout:
    """Collects what stays the same; arguments as in `masked_mlp`.

    Raises:
      InputError: an unknown activation.
    """
    check_activation(activation)
    # Views, not one flat array of all: that would be a second copy of the weights.
    weights = [jnp.ravel(kernel) for kernel in network.kernels]
    shapes = network.shapes
    starts = [0]
    for inputs, outputs in shapes:
        starts.append(starts[-1] + inputs * outputs)
    head = len(shapes) - 1
    if head == 2 and shapes[1][1] <= NARROW:
        path = "narrow"
    else:
        path = ("no hidden layer", "one hidden layer", "two hidden layers", "deep")[min(head, 3)]
    act = ACTIVATIONS[activation]
    return Layout(network, swaps, energy, act, moves_weights, weights, shapes, starts, head, path)


def mask_of(layout: Layout, position: PyTree) -> jax.Array:
    """The mask of a position, bool `[total]`."""
    return position.mask if layout.moves_weights else position


def weight_of(layout: Layout, position: PyTree, layer: int, local: jax.Array) -> jax.Array:
    """Weights of branches, float32 of the shape of `local`: their numbers within the layer, int32."""
    if layout.moves_weights:
        return position.weights[layout.starts[layer] + local]
    return layout.weights[layer][local]
