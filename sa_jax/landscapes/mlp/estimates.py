"""Estimates for each branch, from forward passes with perturbed units or from derivatives of the energy."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.landscapes.mlp.layout import Layout, mask_of
from sa_jax.landscapes.mlp.loops import blocks, cut, zero_like
from sa_jax.moves.base import Estimates
from sa_jax.networks import masks, slopes
from sa_jax.networks.mlp import Network
from sa_jax.types import PyTree

# Number of samples evaluated at once. It limits the memory, and does not change the results.
EVALUATED_SAMPLES = 256
# Forward estimates may take as many multiplications as this number of forward passes of all samples. Where they
# would take more they use fewer samples, but at least so many. On wide networks they then take about a tenth of
# the time of annealing or less. On small ones, such as 784-40-20-10, they take a fifth of it, but there the other
# parts of a run take longer. Chosen on validation images of MNIST: on 784-40-20-10 a third of the samples costs
# 0.2 points of accuracy.
MOST_PASSES = 0.75
LEAST_SAMPLES = 1024


def estimates(layout: Layout, position: PyTree, outputs: tuple[jax.Array, ...], data: tuple) -> Estimates:
    """Returns the `Estimates` at a position, float32 `[total]` each.

    The effects are of second order in the branch's weight, because removing a large weight is not a small change.
    The second derivative is estimated by the mean square of the first derivatives of the samples (the empirical
    Fisher information).
    """
    shapes, (inputs, *targets) = layout.shapes, data
    kernel_masks = masks.unflatten(mask_of(layout, position), shapes)
    weighted = layout.moves_weights
    kernels = masks.unflatten(position.weights, shapes) if weighted else layout.network.kernels
    kept = tuple(jnp.where(mask, kernel, 0) for mask, kernel in zip(kernel_masks, kernels, strict=True))
    zero = zero_like(*jax.tree.leaves(position), inputs)
    pruned = layout.network._replace(kernels=kept)
    sums, samples = _derivative_sums(layout, pruned, [inputs, *outputs], targets, zero)
    derivatives, curvatures = (masks.flatten([of_layer[i] for of_layer in sums]) / samples for i in range(2))
    weights, mask = masks.flatten(kernels), mask_of(layout, position)
    effects = weights * derivatives + jnp.where(mask, -0.5, 0.5) * weights**2 * curvatures
    # A pruned branch acts like a weight of 0. When it is kept again, it has its own weight again.
    return Estimates(effects, derivatives + jnp.where(mask, 0, weights * curvatures), curvatures)


def _derivative_sums(
    layout: Layout, pruned: Network, values: list[jax.Array], targets: list[jax.Array], zero: jax.Array
) -> tuple[list[tuple[jax.Array, jax.Array]], int]:
    """The derivatives with respect to the weights and their squares, each summed over samples, per layer.

    Args:
      layout: fixed part of the landscape.
      pruned: the network with zeros for the pruned branches.
      values: network inputs, and outputs of all layers before the activation, float32 `[units, samples]`.
      targets: labels, int32 `[samples]`, or predictions, float32 `[classes, samples]`.
      zero: initial value of the sums, float32 `[]`; see `loops.zero_like`.

    Returns:
      The two sums of each layer, and the number of samples in them.
    """
    if layout.estimates == "forward":
        used = _used_samples(layout.shapes, values[0].shape[1])
        values, targets = ([array[..., used] for array in arrays] for arrays in (values, targets))
    samples = values[0].shape[1]
    number, size = blocks(samples, EVALUATED_SAMPLES)

    def one_block(i, sums):
        start = jnp.minimum(i * size, samples - size)
        # The last block may overlap the previous block. The samples in both blocks must not count twice.
        fresh = (start + jnp.arange(size) >= i * size)[None]
        inputs, *outputs = (cut(array, (0, start), (array.shape[0], size)) for array in values)
        now = [jax.lax.dynamic_slice_in_dim(target, start, size, -1) for target in targets]
        arguments = pruned, outputs, now, layout.guide, layout.act
        if layout.estimates == "gradient":
            by_layer = slopes.gradient_slopes(*arguments)
        else:
            by_layer = slopes.forward_slopes(*arguments, [size] * len(layout.shapes))
        new = []
        for layer, (first, second) in enumerate(sums):
            active = layout.act(outputs[layer - 1]) if layer else inputs
            slope = jnp.where(fresh, by_layer[layer], 0)
            new.append((first + active @ slope.T, second + (active**2) @ (slope**2).T))
        return new

    nothing = [(jnp.full(shape, zero), jnp.full(shape, zero)) for shape in layout.shapes]
    return jax.lax.fori_loop(0, number, one_block, nothing), samples


def _used_samples(shapes: list[tuple[int, int]], samples: int) -> slice | np.ndarray:
    """Which samples forward estimates use: all of them, or one of every n, int `[samples // n]`."""
    moved = sum(outputs * cost for (_, outputs), cost in zip(shapes, slopes.forward_costs(shapes), strict=True))
    passes = moved / sum(inputs * outputs for inputs, outputs in shapes)
    every = min(math.ceil(passes / MOST_PASSES), samples // LEAST_SAMPLES)
    if every < 2:
        return slice(None)
    # One at random of each group of neighbours, because samples may be sorted by their labels, or the labels may
    # repeat. Always the same ones, because estimates depend on the position alone.
    groups = np.arange(0, samples - every + 1, every)
    return groups + np.random.default_rng(0).integers(every, size=len(groups))
