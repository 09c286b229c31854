"""One-shot pruning: scores every branch once and keeps the branches of highest score. No weight changes.

All functions take a network's plain arrays (`sa_jax.networks.mlp.network_of(params)`) and return a flat mask, bool
`[total]`, with exactly `num_kept` ones; `sa_jax.networks.masks.unflatten` splits it into one mask per kernel.
"""

import itertools

import jax
import jax.numpy as jnp

from sa_jax.networks import masks, mlp
from sa_jax.networks.arrays import jit
from sa_jax.networks.energies import Energy, cross_entropy
from sa_jax.networks.mlp import Network
from sa_jax.pruning.allocation import equal_counts


def random(rng_key: jax.Array, network: Network, num_kept: int) -> jax.Array:
    """Keeps `num_kept` branches drawn uniformly over all layers: a flat mask, bool `[total]`.

    `rng_key` is a key, `[]`.
    """
    return masks.random(rng_key, network.total, num_kept)


@jit(static_argnames=("num_kept",))
def magnitude_global(network: Network, num_kept: int) -> jax.Array:
    """Keeps the branches of largest `|w|` over all layers (Han et al. 2015): a flat mask, bool `[total]`.

    >>> network = Network((jnp.array([[3.0, -1.0], [2.0, -4.0]]),), (None,))
    >>> magnitude_global(network, 2)
    Array([ True, False, False,  True], dtype=bool)
    """
    return masks.by_score(jnp.abs(masks.flatten(network.kernels)), num_kept)


@jit(static_argnames=("num_kept",))
def magnitude_layerwise(network: Network, num_kept: int) -> jax.Array:
    """Keeps the branches of largest `|w|` in each layer, with equal density in all layers (Han et al. 2015).

    Returns a flat mask, bool `[total]`.
    """
    return _in_layers(network, _equal_counts(network, num_kept), [jnp.abs(w) for w in network.kernels])


@jit(static_argnames=("num_kept",))
def magnitude_erk(network: Network, num_kept: int) -> jax.Array:
    """Keeps the branches of largest `|w|` in each layer, with the densities of `masks.erk_counts`.

    Mocanu et al. 2018; Evci et al. 2020, section 3. Returns a flat mask, bool `[total]`.
    """
    return _in_layers(network, masks.erk_counts(network.shapes, num_kept), [jnp.abs(w) for w in network.kernels])


@jit(static_argnames=("num_kept", "activation"))
def wanda_global(network: Network, x: jax.Array, num_kept: int, activation: str = "relu") -> jax.Array:
    """Keeps the branches of largest `|w| * norm(input)` over all layers (Wanda; Sun et al. 2024, equation 1).

    Args:
      network: the fixed weights.
      x: inputs, float `[samples, features]`; no labels are needed.
      num_kept: number of branches that stay.
      activation: 'relu', 'tanh' or 'gelu'.
    """
    return masks.by_score(mlp.saliency(network, x, activation), num_kept)


@jit(static_argnames=("num_kept", "activation"))
def wanda_per_output(network: Network, x: jax.Array, num_kept: int, activation: str = "relu") -> jax.Array:
    """Keeps each unit's branches of largest `|w| * norm(input)`, equal density in all units (Sun et al. 2024).

    Where the number of branches that a layer keeps is not a multiple of its units, the rest goes to the highest
    scores. Arguments and result as in `wanda_global`.
    """
    scores = masks.unflatten(mlp.saliency(network, x, activation), network.shapes)
    # Branches are ordered by their place within their unit first, and by their score second.
    places = [jnp.argsort(jnp.argsort(-score, axis=0, stable=True), axis=0) for score in scores]
    order = [jnp.lexsort((-score.ravel(), place.ravel())) for score, place in zip(scores, places, strict=True)]
    ranked = [-jnp.argsort(of_layer).reshape(shape) for of_layer, shape in zip(order, network.shapes, strict=True)]
    return _in_layers(network, _equal_counts(network, num_kept), ranked)


@jit(static_argnames=("num_kept", "activation"))
def node_entropy(network: Network, x: jax.Array, num_kept: int, activation: str = "relu") -> jax.Array:
    """Keeps the hidden units that are active for about half of the samples (He et al. 2014, entropy).

    A unit is active where its activation is above 0. All layers lose the same share of their units, and a pruned
    unit loses all its branches. The last unit to be pruned keeps its branches of largest `|w|`, so that exactly
    `num_kept` branches are kept. Arguments and result as in `wanda_global`.
    """
    hidden = mlp.layer_inputs(network, x, activation)[1:-1]
    shares = [(values > 0).mean(0) for values in hidden]
    entropy = jax.scipy.special.entr
    return _by_units(network, [entropy(share) + entropy(1 - share) for share in shares], num_kept)


@jit(static_argnames=("num_kept",))
def node_output_norm(network: Network, num_kept: int) -> jax.Array:
    """Keeps the hidden units of largest mean `|w|` over the branches out of them (He et al. 2014, output weights).

    Units are pruned as in `node_entropy`. Returns a flat mask, bool `[total]`.
    """
    return _by_units(network, [jnp.abs(kernel).mean(1) for kernel in network.kernels[1:]], num_kept)


@jit(static_argnames=("num_kept",))
def node_input_norm(network: Network, num_kept: int) -> jax.Array:
    """Keeps the hidden units of largest mean `|w|` over the branches into them (He et al. 2014, input weights).

    Units are pruned as in `node_entropy`. Returns a flat mask, bool `[total]`.
    """
    return _by_units(network, [jnp.abs(kernel).mean(0) for kernel in network.kernels[:-1]], num_kept)


@jit(static_argnames=("num_kept", "activation", "energy"))
def snip(
    network: Network,
    x: jax.Array,
    y: jax.Array,
    num_kept: int,
    activation: str = "relu",
    energy: Energy | None = None,
) -> jax.Array:
    """Keeps the branches of largest `|w * dE/dw|` (SNIP; Lee et al. 2019, equation 4).

    Args:
      network: the fixed weights.
      x: inputs, float `[samples, features]`.
      y: labels, int `[samples]`.
      num_kept: number of branches that stay.
      activation: 'relu', 'tanh' or 'gelu'.
      energy: of the logits; None for the cross-entropy of the labels.
    """
    inputs, slopes = sample_derivatives(network, x, y, activation, energy)
    gradients = [a.T @ d / len(x) for a, d in zip(inputs, slopes, strict=True)]
    return masks.by_score(jnp.abs(masks.flatten(network.kernels) * masks.flatten(gradients)), num_kept)


@jit(static_argnames=("num_kept", "activation", "energy"))
def obd(
    network: Network,
    x: jax.Array,
    y: jax.Array,
    num_kept: int,
    activation: str = "relu",
    energy: Energy | None = None,
) -> jax.Array:
    """Keeps the branches of largest `w^2 h / 2`, with the curvature `h` from the diagonal of the empirical Fisher.

    LeCun, Denker & Solla 1990, with the Fisher of Theis et al. 2018. Arguments and result as in `snip`.
    """
    inputs, slopes = sample_derivatives(network, x, y, activation, energy)
    curvatures = [(a**2).T @ d**2 / len(x) for a, d in zip(inputs, slopes, strict=True)]
    return masks.by_score(masks.flatten(network.kernels) ** 2 * masks.flatten(curvatures) / 2, num_kept)


@jit(static_argnums=(3, 4))
def sample_derivatives(
    network: Network, x: jax.Array, y: jax.Array, activation: str = "relu", energy: Energy | None = None
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Returns the factors of each sample's derivative with respect to the kernels: an outer product in each layer.

    Args:
      network: the fixed weights.
      x: inputs, float `[samples, features]`.
      y: labels, int `[samples]`.
      activation: 'relu', 'tanh' or 'gelu'.
      energy: of the logits; None for the cross-entropy of the labels.

    Returns:
      For each layer its inputs, `[samples, inputs]`; and for each layer the derivative of each sample's own energy
      with respect to the layer's outputs before the activation, `[samples, outputs]`.
    """
    energy = cross_entropy() if energy is None else energy

    def total_energy(offsets):
        entering, h = [], x
        for layer, (kernel, bias, offset) in enumerate(zip(network.kernels, network.biases, offsets, strict=True)):
            entering.append(h)
            h = h @ kernel + offset if bias is None else h @ kernel + bias[None] + offset
            if layer < len(network.kernels) - 1:
                h = mlp.ACTIVATIONS[activation](h)
        return energy(h, y) * len(x), entering  # the energy is a mean, so that this is the samples' sum

    offsets = [jnp.zeros((len(x), outputs), jnp.float32) for _, outputs in network.shapes]
    slopes, entering = jax.grad(total_energy, has_aux=True)(offsets)
    return entering, slopes


def _equal_counts(network: Network, num_kept: int) -> list[int]:
    return equal_counts([inputs * outputs for inputs, outputs in network.shapes], num_kept)


def _in_layers(network: Network, counts: list[int], scores: list[jax.Array]) -> jax.Array:
    return masks.flatten([masks.by_score(s.ravel(), count) for s, count in zip(scores, counts, strict=True)])


def _by_units(network: Network, importances: list[jax.Array], num_kept: int) -> jax.Array:
    """Keeps units by their place within their layer; the later of its two units decides about a branch."""
    places = [jnp.argsort(jnp.argsort(-one, stable=True)).astype(jnp.float32) / len(one) for one in importances]
    features, classes = network.sizes[0], network.sizes[-1]
    ends = [jnp.zeros(features, jnp.float32), *places, jnp.zeros(classes, jnp.float32)]
    later = [jnp.maximum(before[:, None], after[None]) for before, after in itertools.pairwise(ends)]
    order = jnp.lexsort((-jnp.abs(masks.flatten(network.kernels)), masks.flatten(later)))
    return jnp.zeros(network.total, bool).at[order[:num_kept]].set(True)
