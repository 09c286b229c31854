"""Landscapes of masked networks that evaluate each proposal in full: for comparison, and for any model."""

from collections.abc import Callable, Sequence

import jax

from sa_jax.annealing.landscape import from_energy
from sa_jax.landscapes.mlp.loops import dense
from sa_jax.moves import SwapProposal, move_fn
from sa_jax.networks import masks, mlp
from sa_jax.networks.energies import Energy
from sa_jax.networks.mlp import ACTIVATIONS, Network, check_activation
from sa_jax.networks.trees import leaves_by_name
from sa_jax.types import Landscape, PyTree


def full_mlp(
    network: Network,
    swaps: SwapProposal,
    energy: Energy,
    activation: str = "relu",
    mask_of: Callable[[jax.Array], jax.Array] = lambda mask: mask,
) -> Landscape:
    """Makes the landscape of `masked_mlp` by full evaluation, for comparison.

    Arguments and data as in `masked_mlp`. Positions are `(mask, swaps.init(mask))`, so that a proposal does not
    build the index lists again. With `mask_of`, the first entry of a position may be another flat boolean array,
    such as one value per block. `mask_of` turns this array into the mask, bool `[total]`.

    Raises:
      InputError: if the activation is unknown.
    """
    check_activation(activation)

    def energy_fn(position, inputs, *targets):
        masked = mlp.masked(network, mask_of(position[0]))
        value = dense(masked.kernels[0], masked.biases[0], inputs)
        for kernel, bias in zip(masked.kernels[1:], masked.biases[1:], strict=True):
            value = dense(kernel, bias, ACTIVATIONS[activation](value))
        return energy(value, *targets, axis=0)

    return from_energy(energy_fn, move_fn(swaps))


def full_model(
    apply_fn: Callable[[PyTree, jax.Array], jax.Array],
    params: PyTree,
    paths: Sequence[str],
    swaps: SwapProposal,
    energy: Energy,
) -> Landscape:
    """Makes the landscape of the masks of chosen kernels of a model, by full evaluation.

    Positions are `(mask, swaps.init(mask))`, as in `full_mlp`. The mask is flat, bool `[total]`, with the kernels
    in the order of `paths`. Data is `(x, targets)`, as `apply_fn` and `energy` take them.

    Args:
      apply_fn: `(params, x) -> logits`, float `[samples, classes]`.
      params: any pytree of arrays.
      paths: paths of the chosen kernels.
      swaps: the proposals.
      energy: energy of the logits; see `sa_jax.networks.energies`.
    """
    kernels = {path: leaves_by_name(params)[path] for path in paths}

    def energy_fn(position, x, *targets):
        return energy(apply_fn(masks.apply_masks(params, masks.unflatten_like(position[0], kernels)), x), *targets)

    return from_energy(energy_fn, move_fn(swaps))
