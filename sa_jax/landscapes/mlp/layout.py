"""The fixed part of a landscape: the network, its shapes and the path of a proposal."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sa_jax import checks
from sa_jax.moves.base import SwapProposal
from sa_jax.networks.energies import Energy, check_energy
from sa_jax.networks.mlp import ACTIVATIONS, Network, check_activation, check_network
from sa_jax.networks.slopes import ESTIMATES
from sa_jax.types import PyTree

# Measured on x86 with AVX2. It does not change the results.
# The second of two hidden layers is updated completely if it has at most so many units: to find its changed rows
# would cost more.
NARROW = 32


class Layout(NamedTuple):
    """The fixed part of a landscape.

    Attributes:
      network: the weights.
      swaps: the proposals.
      energy: energy of the logits.
      activation: its name, 'relu', 'tanh' or 'gelu'.
      moves_weights: whether positions are `Weighted`.
      estimates: 'forward' or 'gradient'.
      guide: the energy whose estimates guide the proposals.
      weights: flat weights of each layer.
      shapes: `(inputs, outputs)` of each layer.
      starts: flat index of the first branch of each layer; at the end, the total number of branches.
      head: index of the last layer.
      path: name of the function that computes the logits of a proposal, a key of `logits.PATHS`.
    """

    network: Network
    swaps: SwapProposal
    energy: Energy
    activation: str
    moves_weights: bool
    estimates: str
    guide: Energy
    weights: list[jax.Array]  # float32 [inputs * outputs] each
    shapes: list[tuple[int, int]]
    starts: list[int]
    head: int
    path: str

    @property
    def act(self) -> Callable[[jax.Array], jax.Array]:
        """The activation function, of arrays of any shape."""
        return ACTIVATIONS[self.activation]

    @property
    def narrow(self) -> bool:
        """Whether the second of two hidden layers is updated completely."""
        return self.path == "narrow"


def layout_of(
    network: Network,
    swaps: SwapProposal,
    energy: Energy,
    activation: str,
    moves_weights: bool = False,
    estimates: str = "forward",
    guide: Energy | None = None,
) -> Layout:
    """Makes the fixed part of a landscape; arguments as in `masked_mlp`.

    Raises:
      InputError: network or energy are something else, or the activation or the kind of estimates is unknown.
    """
    check_network(network)
    check_energy(energy)
    check_activation(activation)
    checks.choice("estimates", estimates, ESTIMATES)
    # A flat array per layer, because one flat array of all layers would be a second copy of the weights.
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
    options = moves_weights, estimates, energy if guide is None else guide
    return Layout(network, swaps, energy, activation, *options, weights, shapes, starts, head, path)


def mask_of(layout: Layout, position: PyTree) -> jax.Array:
    """Returns the mask of a position, bool `[total]`."""
    return position.mask if layout.moves_weights else position


def weight_of(layout: Layout, position: PyTree, layer: int, local: jax.Array) -> jax.Array:
    """Returns the weights of branches, float32 of the shape of `local`: indices within the layer, int32."""
    if layout.moves_weights:
        return position.weights[layout.starts[layer] + local]
    return layout.weights[layer][local]
