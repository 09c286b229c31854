"""One-shot masks: score every branch once, keep the highest. No weight changes.

All functions take a network's plain arrays (`sa_jax.models.network_of(params)`) and return a flat mask, bool
`[total]`, with exactly `kept` ones; `sa_jax.masks.unflatten` gives one per kernel.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.networks import masks, mlp
from sa_jax.networks.energies import Energy, cross_entropy
from sa_jax.networks.mlp import Network


def random(rng_key: jax.Array, network: Network, kept: int) -> jax.Array:
    """Keeps `kept` branches drawn uniformly over all layers; `rng_key` is a key, `[]`."""
    return masks.random(rng_key, network.total, kept)


@partial(jax.jit, static_argnames=("kept",))
def magnitude_global(network: Network, kept: int) -> jax.Array:
    """Keeps the branches of largest `|w|` over all layers (Han et al. 2015): a flat mask, bool `[total]`.

    >>> network = Network((jnp.array([[3.0, -1.0], [2.0, -4.0]]),), (None,))
    >>> magnitude_global(network, 2)
    Array([ True, False, False,  True], dtype=bool)
    """
    return masks.by_score(jnp.abs(masks.flatten(network.kernels)), kept)


@partial(jax.jit, static_argnames=("kept",))
def magnitude_layerwise(network: Network, kept: int) -> jax.Array:
    """Keeps the branches of largest `|w|` in each layer, with equal density in all (Han et al. 2015).

    Returns a flat mask, bool `[total]`, like all here.
    """
    return _in_layers(network, layerwise_counts(network, kept), [jnp.abs(w) for w in network.kernels])


@partial(jax.jit, static_argnames=("kept",))
def magnitude_erk(network: Network, kept: int) -> jax.Array:
    """Keeps the branches of largest `|w|` in each layer, with the densities of `masks.erk_counts`.

    Mocanu et al. 2018; Evci et al. 2020, section 3. Returns a flat mask, bool `[total]`.
    """
    return _in_layers(network, masks.erk_counts(network.shapes, kept), [jnp.abs(w) for w in network.kernels])


@partial(jax.jit, static_argnames=("kept", "activation"))
def wanda_global(network: Network, x: jax.Array, kept: int, activation: str = "relu") -> jax.Array:
    """Keeps the branches of largest `|w| * norm(input)` over all layers (Wanda; Sun et al. 2024, equation 1).

    Args:
      network: the fixed weights.
      x: inputs, float `[samples, features]`; no label is needed.
      kept: number of branches that stay.
      activation: 'relu', 'tanh' or 'gelu'.
    """
    return masks.by_score(mlp.saliency(network, x, activation), kept)


@partial(jax.jit, static_argnames=("kept", "activation"))
def wanda_per_output(network: Network, x: jax.Array, kept: int, activation: str = "relu") -> jax.Array:
    """The same score, compared among the branches into one unit, equal density in all units (Sun et al. 2024).

    Where a layer's branches do not divide by its units, those left over go to the highest scores. Arguments and
    result as in `wanda_global`.
    """
    scores = masks.unflatten(mlp.saliency(network, x, activation), network.shapes)
    # The place within its unit first, the score second: by_score keeps the least place.
    places = [jnp.argsort(jnp.argsort(-score, axis=0, stable=True), axis=0) for score in scores]
    order = [jnp.lexsort((-score.ravel(), place.ravel())) for score, place in zip(scores, places, strict=True)]
    ranked = [-jnp.argsort(of_layer).reshape(shape) for of_layer, shape in zip(order, network.shapes, strict=True)]
    return _in_layers(network, layerwise_counts(network, kept), ranked)


@partial(jax.jit, static_argnames=("kept", "activation"))
def node_entropy(network: Network, x: jax.Array, kept: int, activation: str = "relu") -> jax.Array:
    """Keeps the hidden units that are on for about half of the samples (He et al. 2014, entropy).

    A unit is on where its activation is above 0. Units go layer by layer in equal shares, with all their branches;
    of the last unit, those of largest `|w|` stay, so that exactly `kept` do. Arguments and result as in
    `wanda_global`.
    """
    hidden = mlp.layer_inputs(network, x, activation)[1:-1]
    shares = [(values > 0).mean(0) for values in hidden]
    entropy = jax.scipy.special.entr
    return _by_units(network, [entropy(share) + entropy(1 - share) for share in shares], kept)


@partial(jax.jit, static_argnames=("kept",))
def node_output_norm(network: Network, kept: int) -> jax.Array:
    """Keeps the hidden units of largest mean `|w|` over the branches out of them (He et al. 2014, output weights).

    Units go as in `node_entropy`. Returns a flat mask, bool `[total]`.
    """
    return _by_units(network, [jnp.abs(kernel).mean(1) for kernel in network.kernels[1:]], kept)


@partial(jax.jit, static_argnames=("kept",))
def node_input_norm(network: Network, kept: int) -> jax.Array:
    """Keeps the hidden units of largest mean `|w|` over the branches into them (He et al. 2014, input weights).

    Units go as in `node_entropy`. Returns a flat mask, bool `[total]`.
    """
    return _by_units(network, [jnp.abs(kernel).mean(0) for kernel in network.kernels[:-1]], kept)


@partial(jax.jit, static_argnames=("kept", "activation", "energy"))
def snip(
    network: Network,
    x: jax.Array,
    y: jax.Array,
    kept: int,
    activation: str = "relu",
    energy: Energy | None = None,
) -> jax.Array:
    """Keeps the branches of largest `|w * dE/dw|` (SNIP; Lee et al. 2019, equation 4).

    Args:
      network: the fixed weights.
      x: inputs, float `[samples, features]`.
      y: labels, int `[samples]`.
      kept: number of branches that stay.
      activation: 'relu', 'tanh' or 'gelu'.
      energy: of the logits; None for the cross-entropy of the labels.
    """
    inputs, slopes = sample_derivatives(network, x, y, activation, energy)
    gradients = [a.T @ d / len(x) for a, d in zip(inputs, slopes, strict=True)]
    return masks.by_score(jnp.abs(masks.flatten(network.kernels) * masks.flatten(gradients)), kept)


@partial(jax.jit, static_argnames=("kept", "activation", "energy"))
def obd(
    network: Network,
    x: jax.Array,
    y: jax.Array,
    kept: int,
    activation: str = "relu",
    energy: Energy | None = None,
) -> jax.Array:
    """Keeps the branches of largest `w^2 h / 2`, with the curvature `h` from the diagonal of the empirical Fisher.

    LeCun, Denker & Solla 1990, with the Fisher of Theis et al. 2018. Arguments and result as in `snip`.
    """
    inputs, slopes = sample_derivatives(network, x, y, activation, energy)
    curvatures = [(a**2).T @ d**2 / len(x) for a, d in zip(inputs, slopes, strict=True)]
    return masks.by_score(masks.flatten(network.kernels) ** 2 * masks.flatten(curvatures) / 2, kept)


@partial(jax.jit, static_argnums=(3, 4))
def sample_derivatives(
    network: Network, x: jax.Array, y: jax.Array, activation: str = "relu", energy: Energy | None = None
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Returns what each sample's derivative by the kernels is made of: an outer product in each layer.

    Returns:
      For each layer what enters it, `[samples, inputs]`, and the derivative of each sample's own energy by what
      leaves it before the activation, `[samples, outputs]`.
    """
    energy = cross_entropy() if energy is None else energy

    def total_energy(offsets):
        entering, h = [], x
        for layer, (kernel, bias, offset) in enumerate(zip(network.kernels, network.biases, offsets, strict=True)):
            entering.append(h)
            h = h @ kernel + offset if bias is None else h @ kernel + bias + offset
            if layer < len(network.kernels) - 1:
                h = mlp.ACTIVATIONS[activation](h)
        return energy(h, y) * len(x), entering  # the energy is a mean, so that this is the samples' sum

    offsets = [jnp.zeros((len(x), outputs)) for _, outputs in network.shapes]
    slopes, entering = jax.grad(total_energy, has_aux=True)(offsets)
    return entering, slopes


def layerwise_counts(network: Network, kept: int) -> list[int]:
    """How many branches of each layer stay at equal density, `kept` in all; largest remainders are rounded up.

    >>> layerwise_counts(Network((jnp.ones((3, 3)), jnp.ones((3, 2))), (None, None)), 5)
    [3, 2]
    """
    sizes = np.array([inputs * outputs for inputs, outputs in network.shapes])
    exact = sizes * kept / sizes.sum()
    counts = exact.astype(int)
    for layer in np.argsort(counts - exact, kind="stable")[: kept - counts.sum()]:
        counts[layer] += 1
    return [int(count) for count in counts]


def _in_layers(network: Network, counts: list[int], scores: list[jax.Array]) -> jax.Array:
    return masks.flatten([masks.by_score(s.ravel(), count) for s, count in zip(scores, counts, strict=True)])


def _by_units(network: Network, importances: list[jax.Array], kept: int) -> jax.Array:
    """Keeps units by their place within their layer, a branch going with the later of its two ends."""
    places = [jnp.argsort(jnp.argsort(-one, stable=True)) / len(one) for one in importances]
    features, classes = network.sizes[0], network.sizes[-1]
    ends = [jnp.zeros(features), *places, jnp.zeros(classes)]
    later = [jnp.maximum(before[:, None], after) for before, after in itertools.pairwise(ends)]
    order = jnp.lexsort((-jnp.abs(masks.flatten(network.kernels)), masks.flatten(later)))
    return jnp.zeros(network.total, bool).at[order[:kept]].set(True)
