"""How the loss of a convolutional network changes with each of its weights: by forward passes, or by derivatives.

In a dense layer the slope of a unit times the input of a branch is the derivative with respect to the branch's
weight (`sa_jax.networks.slopes`). The output of a convolution has many more units than its kernel has weights, and
every weight acts on all positions. So here the weights themselves are moved, each in a copy of the network of its
own, and the losses observed: weight perturbation (Jabri & Flower 1992). A moved weight changes one channel. The
next convolution sums it into all its outputs, and the later layers are evaluated in full, all copies as one batch.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from sa_jax.networks import slopes
from sa_jax.networks.cnn import (
    Architecture,
    ConvNetwork,
    Stage,
    activate,
    convolve,
    flattened,
    kernel_shapes,
    patches,
    stages_of,
)
from sa_jax.networks.energies import Energy
from sa_jax.networks.mlp import ACTIVATIONS, Network
from sa_jax.networks.slopes import LOSS_COST, PERTURBATION


def layer_outputs(network: ConvNetwork, x: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
    """Returns the inputs of each layer and its outputs before the activation; the last are the logits.

    Both are float32 `[channels, height, width, samples]` for convolutions, `[units, samples]` for dense layers.

    Args:
      network: the weights, with zeros for the pruned branches.
      x: inputs, float32 `[channels, height, width, samples]`.
    """
    stages, act = stages_of(network.architecture), ACTIVATIONS[network.architecture.activation]
    matrices, entering, outputs = matrices_of(network), [x], []
    for number, (matrix, bias) in enumerate(zip(matrices, network.biases, strict=True)):
        if number < len(stages):
            outputs.append(convolve(stages[number], matrix, bias, entering[-1]))
            after = activate(stages[number], outputs[-1])
            entering.append(flattened(after) if number == len(stages) - 1 else after)
        else:
            value = matrix.T @ entering[-1]
            outputs.append(value if bias is None else value + bias[:, None])
            entering.append(act(outputs[-1]))
    return entering[:-1], outputs


def matrices_of(network: ConvNetwork) -> list[jax.Array]:
    """Returns the kernels as matrices, float32 `[taps * inputs / groups, outputs]` or `[inputs, outputs]`."""
    return [kernel.reshape(shape) for kernel, shape in zip(network.kernels, network.shapes, strict=True)]


def forward_slopes(
    network: ConvNetwork,
    entering: Sequence[jax.Array],
    outputs: Sequence[jax.Array],
    targets: Sequence[jax.Array],
    energy: Energy,
    samples: Sequence[int],
) -> list[jax.Array]:
    """Estimates the derivative of the mean loss with respect to every weight, from forward passes alone.

    Args:
      network: the weights, with zeros for the pruned branches.
      entering: inputs of the layers, from `layer_outputs`.
      outputs: outputs of the layers, from `layer_outputs`.
      targets: labels, int32 `[samples]`, or predictions, float32 `[classes, samples]`.
      energy: energy of the logits; a mean over samples.
      samples: for each layer, on how many samples, the first ones, its slopes are estimated.

    Returns:
      For each layer the derivatives, whether a branch is kept or not, as a matrix, float32 `[rows, outputs]`.
    """
    stages, matrices = stages_of(network.architecture), matrices_of(network)
    count, act = len(stages), ACTIVATIONS[network.architecture.activation]
    losses = slopes.sample_losses(energy, outputs[-1], targets)
    found = []
    for number, stage in enumerate(stages):
        used = samples[number]
        wanted = [target[..., :used] for target in targets]
        near = [[array[..., :used] for array in values] for values in (entering, outputs)]
        amount = _amount(*(values[number] for values in near))
        logits = _logits_of_moved(network, stages, number, near[1], patches(stage, near[0][number]), amount)
        tiled = [jnp.tile(target, (1,) * (target.ndim - 1) + (matrices[number].size,)) for target in wanted]
        moved = slopes.sample_losses(energy, logits, tiled).reshape(*matrices[number].shape, used)
        found.append(((moved - losses[None, None, :used]) / amount).mean(-1).astype(jnp.float32))
    dense = Network(tuple(matrices[count:]), network.biases[count:])
    by_layer = slopes.forward_slopes(dense, outputs[count:], targets, energy, act, samples[count:])
    for values, slope in zip(entering[count:], by_layer, strict=True):
        found.append(values[:, : slope.shape[1]] @ slope.T / slope.shape[1])
    return found


def _amount(entering, outputs):
    """By how much weights are moved: outputs then change by a share of their root mean square."""
    scales = [jnp.sqrt((values**2).mean()) for values in (outputs, entering)]
    into, of = (jnp.where(scale > 0, scale, 1.0) for scale in scales)
    return PERTURBATION * into / of


def _logits_of_moved(network, stages, number, outputs, shifted, amount):
    """The logits after one weight of a convolution is moved, float32 `[classes, weights * samples]`."""
    stage, matrices = stages[number], matrices_of(network)
    height, width, channels = stage.outputs
    old, samples, groups = outputs[number], outputs[number].shape[-1], stage.layer.groups
    # All rows of the kernel's matrix, with all channels that they lead to.
    taps = math.prod(stage.layer.window)
    shifted = shifted.reshape(taps, groups, -1, 1, height, width, samples).swapaxes(1, 2)
    rows = taps * shifted.shape[1]
    per_channel = jnp.broadcast_to(shifted, (*shifted.shape[:3], channels // groups, *shifted.shape[4:]))
    moved = old[None] + amount * per_channel.reshape(rows, *old.shape)
    was, now = activate(stage, old), activate(stage, moved.reshape(-1, *old.shape[1:]))
    change = now.reshape(rows, *was.shape) - was[None]
    later = number + 1
    if later == len(stages):
        kernel = matrices[later].reshape(-1, channels, matrices[later].shape[1])
        added = jnp.einsum("pcu,rcpn->urcn", kernel, change.reshape(rows, channels, -1, samples))
        values = (outputs[later][:, None, None] + added).reshape(len(outputs[later]), -1)
    else:
        values = _spread(stages[later], matrices[later], network.biases[later], outputs[later], was, change)
    for after in range(later + 1, len(outputs)):
        bias = network.biases[after]
        if after < len(stages):
            values = convolve(stages[after], matrices[after], bias, activate(stages[after - 1], values))
            continue
        act = ACTIVATIONS[network.architecture.activation]
        active = act(values) if after > len(stages) else flattened(activate(stages[-1], values))
        values = matrices[after].T @ active
        values = values if bias is None else values + bias[:, None]
    return values


def _spread(stage: Stage, matrix, bias, old, was, change):
    """The outputs of a convolution of whose inputs one channel changes, `[outputs, height, width, columns]`."""
    rows, channels, samples = len(change), len(was), was.shape[-1]
    if stage.layer.groups == 1:
        kernel = matrix.reshape(-1, channels, matrix.shape[1])
        shifted = patches(stage, change.reshape(-1, *was.shape[1:]))
        shifted = shifted.reshape(len(kernel), rows, channels, *stage.outputs[:2], samples)
        added = jnp.einsum("tco,trcijn->oijrcn", kernel, shifted)
        return (old[:, :, :, None, None] + added).reshape(*old.shape[:3], -1)
    alone = jnp.eye(channels, dtype=was.dtype)[None, :, :, None, None, None]
    moved = was[None, None] + alone * change[:, :, None]
    return convolve(stage, matrix, bias, jnp.moveaxis(moved, (0, 1), (3, 4)).reshape(*was.shape[:3], -1))


def gradient_slopes(
    network: ConvNetwork, x: jax.Array, targets: Sequence[jax.Array], energy: Energy
) -> list[jax.Array]:
    """Returns the derivatives of `forward_slopes` by back-propagation.

    Args:
      network: the weights, with zeros for the pruned branches.
      x: inputs, float32 `[channels, height, width, samples]`.
      targets: as in `forward_slopes`.
      energy: energy of the logits.

    Returns:
      For each layer, float32 `[rows, outputs]`.
    """

    def value(kernels):
        moved = ConvNetwork(network.architecture, kernels, network.biases)
        return energy(layer_outputs(moved, x)[1][-1], *targets, axis=0)

    found = jax.grad(value)(network.kernels)
    return [slope.reshape(shape) for slope, shape in zip(found, network.shapes, strict=True)]


def forward_costs(architecture: Architecture) -> list[int]:
    """Returns for each layer about how many multiplications the slopes take for one sample.

    >>> from sa_jax.networks.cnn import LENET5
    >>> [round(cost / 1e6, 1) for cost in forward_costs(LENET5)]
    [15.1, 34.4, 0.1, 0.0, 0.0]
    """
    stages, shapes = stages_of(architecture), kernel_shapes(architecture)
    loss, count = LOSS_COST * shapes[-1][-1], len(stages)
    passes = layer_costs(architecture)
    costs = []
    for number, stage in enumerate(stages):
        channel = math.prod(stage.outputs[:2]) * 2
        spread = passes[number + 1] // stage.layer.outputs
        own = channel + spread + sum(passes[number + 2 :]) + loss
        costs.append(math.prod(shapes[number]) * own)
    dense = [(shape[0], shape[1]) for shape in shapes[count:]]
    per_unit = slopes.forward_costs(dense)
    return costs + [outputs * cost for (_, outputs), cost in zip(dense, per_unit, strict=True)]


def layer_costs(architecture: Architecture) -> list[int]:
    """Returns how many multiplications each layer takes for one sample.

    >>> from sa_jax.networks.cnn import LENET5
    >>> layer_costs(LENET5)
    [117600, 240000, 48000, 10080, 840]
    """
    stages, shapes = stages_of(architecture), kernel_shapes(architecture)
    positions = [math.prod(stage.outputs[:2]) for stage in stages] + [1] * (len(shapes) - len(stages))
    return [math.prod(shape) * number for shape, number in zip(shapes, positions, strict=True)]
