"""Landscapes of masked networks by full evaluation of each proposal, to compare with and for other networks."""

from collections.abc import Callable

import jax

from sa_jax import models
from sa_jax.energies import Energy
from sa_jax.landscape import from_energy
from sa_jax.landscapes.mlp.loops import dense
from sa_jax.models import ACTIVATIONS, Network, check_activation
from sa_jax.moves import Swaps, move_fn
from sa_jax.types import Landscape


def full_mlp(
    network: Network,
    swaps: Swaps,
    energy: Energy,
    activation: str = "relu",
    mask_of: Callable[[jax.Array], jax.Array] = lambda mask: mask,
) -> Landscape:
    """Makes the same landscape by full evaluation, for comparison: arguments and data as for `masked_mlp`.

    Positions are `(mask, swaps.init(mask))`, so that a proposal does not rebuild the index lists. With `mask_of`
    the first may be anything flat and boolean of which it makes the mask, bool `[total]`, such as blocks.

    Raises:
      InputError: an unknown activation.
    """
    check_activation(activation)

    def energy_fn(position, inputs, *targets):
        masked = models.masked(network, mask_of(position[0]))
        value = dense(masked.kernels[0], masked.biases[0], inputs)
        for kernel, bias in zip(masked.kernels[1:], masked.biases[1:], strict=True):
            value = dense(kernel, bias, ACTIVATIONS[activation](value))
        return energy(value, *targets, axis=0)

    return from_energy(energy_fn, move_fn(swaps))
