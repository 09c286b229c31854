"""Small random networks, their samples, their energy written again from the definition, and recorded estimates."""

import itertools

import jax.numpy as jnp
import numpy as np

from sa_jax.landscapes.mlp.layout import NARROW
from sa_jax.moves.uniform import uniform_swap
from sa_jax.networks import mlp

SIZES = {
    "one layer": [7, 4],
    "two layers": [6, 5, 3],
    "three, narrow": [6, 5, 4, 3],
    "three, wide": [6, 5, NARROW + 5, 3],
    "four": [5, 4, 4, 3, 3],
    "four, wide": [6, 40, 37, 20, 3],
    "five": [5, 4, 3, 4, 3, 2],
}


def make_network(name, use_bias, seed=0):
    shapes = list(itertools.pairwise(SIZES[name]))
    numbers = np.random.default_rng(seed)  # of which none is compiled
    # Outputs of about the same size in narrow and in wide networks.
    kernels = tuple(jnp.asarray(numbers.normal(0, 2 / np.sqrt(shape[0]), shape), jnp.float32) for shape in shapes)
    biases = tuple(jnp.asarray(numbers.normal(size=outputs), jnp.float32) for _, outputs in shapes)
    return mlp.Network(kernels, biases if use_bias else (None,) * len(shapes))


def make_samples(network, samples=9, seed=1):
    numbers = np.random.default_rng(seed)
    x = jnp.asarray(numbers.normal(size=(samples, network.sizes[0])), jnp.float32)
    return x, jnp.asarray(numbers.integers(network.sizes[-1], size=samples), jnp.int32)


def full_energy(network, energy, activation):
    """Written again from the definition, in float64 and without the package's forward pass."""

    def evaluate(mask, x, y):
        act = {
            "relu": lambda z: np.maximum(z, 0),
            "tanh": np.tanh,
            "gelu": lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
        }[activation]
        a, start = np.asarray(x, np.float64), 0
        for layer, (kernel, bias) in enumerate(zip(network.kernels, network.biases, strict=True)):
            kept = np.asarray(mask[start : start + kernel.size]).reshape(kernel.shape)
            start += kernel.size
            a = (act(a) if layer else a) @ np.where(kept, np.asarray(kernel, np.float64), 0)
            a = a if bias is None else a + np.asarray(bias, np.float64)
        if energy == "error_rate":
            low, high = np.sort(a, 1)[:, -2:].T
            # Rounding may break a tie either way, as between two classes without a kept branch.
            return np.where(high - low < 1e-4, np.nan, a.argmax(1) != np.asarray(y)).mean()
        a = 3.0 * (a - a.max(1, keepdims=True))
        return np.mean(np.log(np.exp(a).sum(1)) - a[np.arange(len(y)), np.asarray(y)])

    return evaluate


# A network whose masks can all be enumerated.
TINY = mlp.Network((jnp.array([[1.5, -0.7], [0.4, 1.1]]), jnp.array([[0.9, -1.2], [-0.8, 0.6]])), (None, None))
TINY_DATA = (jnp.array([[1.0, -0.5, 0.3, 2.0], [0.2, 1.0, -1.0, 0.7]]), jnp.array([0, 1, 1, 0]))


def enumerate_masks(total, kept):
    chosen = list(itertools.combinations(range(total), kept))
    all_masks = np.zeros((len(chosen), total), bool)
    for row, branches in enumerate(chosen):
        all_masks[row, list(branches)] = True
    return all_masks


def record_estimates():
    """Swaps whose state is what they are told of the energy."""
    return uniform_swap()._replace(refresh=lambda state, mask, estimates: estimates)
