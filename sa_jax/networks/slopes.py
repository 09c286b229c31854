"""How the loss of each sample changes with the output of each unit: from forward passes, or by derivatives.

All arrays have the samples last, `[units, samples]`. A unit's output is taken before the activation. A slope times
the input of a branch is the derivative of the sample's loss with respect to the branch's weight, whether the
branch is kept or not. So slopes alone tell the effect of every branch.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from sa_jax.networks.energies import Energy
from sa_jax.networks.mlp import Network

ESTIMATES = ("forward", "gradient")
# The amount by which a unit's output is moved, as a share of the root mean square of its layer's outputs. Chosen
# on validation images of MNIST, on 784-40-20-10: a hundredth loses nothing against the derivative, and an amount
# of 0.05 for all layers loses half a point of accuracy.
PERTURBATION = 0.01
# Number of values evaluated at once, so that they stay in the CPU cache. It does not change the results.
CACHED_VALUES = 2**18
# Multiplications that take as long as a sample's loss, per class.
LOSS_COST = 20

Activation = Callable[[jax.Array], jax.Array]


def layer_outputs(network: Network, x: jax.Array, act: Activation) -> list[jax.Array]:
    """Returns each layer's outputs before the activation, float32 `[units, samples]`; the last are the logits.

    Args:
      network: the weights, with zeros for the pruned branches.
      x: inputs, float32 `[features, samples]`.
      act: the activation.
    """
    outputs: list[jax.Array] = []
    for layer in range(len(network.kernels)):
        outputs.append(_layer(network, layer, act(outputs[-1]) if layer else x))
    return outputs


def sample_losses(energy: Energy, logits: jax.Array, targets: Sequence[jax.Array]) -> jax.Array:
    """Returns the energy of each sample alone, float32 `[samples]`.

    Args:
      energy: energy of the logits; a mean over samples.
      logits: float32 `[classes, samples]`.
      targets: labels, int32 `[samples]`, or predictions, float32 `[classes, samples]`.
    """

    def loss(logits, *targets):
        return energy(logits[:, None], *(target[..., None] for target in targets), axis=0)

    return jax.vmap(loss, in_axes=-1)(logits, *targets)


def forward_slopes(
    network: Network,
    outputs: Sequence[jax.Array],
    targets: Sequence[jax.Array],
    energy: Energy,
    act: Activation,
    samples: Sequence[int],
) -> list[jax.Array]:
    """Estimates slopes from forward passes alone: moves one unit's output and observes the losses.

    Madaline Rule III perturbs each unit in this way (Andes, Widrow, Lehr & Wan 1990), which is also called node
    perturbation. Nothing is differentiated, and nothing is propagated backwards. Many units are moved at once,
    each in a copy of the network of its own, as one batch.

    Args:
      network: the weights, with zeros for the pruned branches.
      outputs: from `layer_outputs`.
      targets: see `sample_losses`.
      energy: energy of the logits.
      act: the activation.
      samples: for each layer, on how many samples, the first ones, its slopes are estimated.

    Returns:
      For each layer, float32 `[units, samples of the layer]`.
    """
    losses = sample_losses(energy, outputs[-1], targets)
    slopes = []
    for layer, number in enumerate(samples):
        root_mean_square = jnp.sqrt((outputs[layer] ** 2).mean())
        amount = PERTURBATION * jnp.where(root_mean_square > 0, root_mean_square, 1.0)
        some = [array[:, :number] for array in outputs]
        wanted = [target[..., :number] for target in targets]
        unmoved = jnp.broadcast_to(losses[None, :number], (len(outputs[layer]), number))
        moved = _losses_of_moved(network, some, wanted, energy, act, layer, amount, unmoved)
        slopes.append(((moved - unmoved) / amount).astype(jnp.float32))
    return slopes


def _losses_of_moved(network, outputs, targets, energy, act, layer, amount, unmoved) -> jax.Array:
    """The losses of all samples after one unit of a layer is moved, float32 `[units, samples]`."""
    units, samples = outputs[layer].shape
    widest = max(len(values) for values in outputs[layer:])
    # As many units at once as fit into the cache.
    number = -(-units // max(CACHED_VALUES // (widest * samples), 1))
    size = -(-units // number)

    def one_chunk(i, losses):
        first = jnp.minimum(jnp.asarray(i, jnp.int32) * size, units - size)
        logits = _logits_of_moved(network, outputs, act, layer, first, size, amount)
        tiled = [jnp.broadcast_to(one[..., None, :], (*one.shape[:-1], size, samples)) for one in targets]
        tiled = [one.reshape(*one.shape[:-2], size * samples) for one in tiled]
        new = sample_losses(energy, logits, tiled).reshape(size, samples)
        return jax.lax.dynamic_update_slice_in_dim(losses, new, first, 0)

    # Inside `shard_map` the initial value must vary over the mesh as the losses do.
    return one_chunk(0, unmoved) if number == 1 else jax.lax.fori_loop(0, number, one_chunk, unmoved)


def _logits_of_moved(network, outputs, act, layer, first, size, amount) -> jax.Array:
    """The logits after one of `size` units from `first` on is moved, float32 `[classes, size * samples]`."""
    head, samples = len(outputs) - 1, outputs[0].shape[1]
    if layer == head:
        units = first + jnp.arange(size, dtype=jnp.int32)
        is_moved = jnp.arange(len(outputs[head]), dtype=jnp.int32)[:, None] == units[None]
        moved = outputs[head][:, None, :] + jnp.where(is_moved, amount, 0)[:, :, None]
        return moved.reshape(-1, size * samples)
    values = jax.lax.dynamic_slice_in_dim(outputs[layer], first, size)
    kernel = jax.lax.dynamic_slice_in_dim(network.kernels[layer + 1], first, size)
    change = act(values + amount) - act(values)
    moved = outputs[layer + 1][:, None, :] + kernel.T[:, :, None] * change[None]
    moved = moved.reshape(-1, size * samples)
    for later in range(layer + 2, head + 1):
        moved = _layer(network, later, act(moved))
    return moved


def gradient_slopes(
    network: Network,
    outputs: Sequence[jax.Array],
    targets: Sequence[jax.Array],
    energy: Energy,
    act: Activation,
) -> list[jax.Array]:
    """Returns the slopes of all units by back-propagation, float32 `[units, samples]` for each layer.

    Arguments as in `forward_slopes`.
    """
    samples = outputs[0].shape[1]
    signal = samples * jax.grad(lambda logits: energy(logits, *targets, axis=0))(outputs[-1])
    slopes = [signal]
    for layer in reversed(range(1, len(outputs))):
        signal = jax.vjp(act, outputs[layer - 1])[1](network.kernels[layer] @ signal)[0]
        slopes.insert(0, signal)
    return slopes


def forward_costs(shapes: Sequence[tuple[int, int]]) -> list[int]:
    """Returns for each layer about how many multiplications one sample's loss takes after a unit is moved.

    >>> forward_costs([(784, 300), (300, 100), (100, 10)])
    [1300, 210, 200]
    """
    loss, sizes = LOSS_COST * shapes[-1][1], [math.prod(shape) for shape in shapes]
    widths = [outputs for _, outputs in shapes[1:]] + [0]
    return [loss + width + sum(sizes[layer + 2 :]) for layer, width in enumerate(widths)]


def _layer(network: Network, layer: int, entering: jax.Array) -> jax.Array:
    """A layer's outputs before the activation, `[outputs, columns]`."""
    values = network.kernels[layer].T @ entering
    bias = network.biases[layer]
    return values if bias is None else values + bias[:, None]
