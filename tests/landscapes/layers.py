"""A random linear layer, its energy by definition, and all its masks."""

import itertools

import jax
import numpy as np


def layer(rows, inputs, seed=0, samples=None):
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(keys[0], (samples or 4 * inputs, inputs)) @ jax.random.normal(keys[1], (inputs, inputs))
    return jax.random.normal(keys[2], (rows, inputs)), x.T @ x / len(x)


def energy_of(weight, gram, mask):
    """By the outputs' own definition, in float64."""
    removed = np.where(mask, 0.0, np.asarray(weight, np.float64))
    return float(np.einsum("ri,ij,rj->", removed, np.asarray(gram, np.float64), removed))


def all_masks(shape, num_kept, group):
    size = group or shape[0] * shape[1]
    one = [[i in chosen for i in range(size)] for chosen in itertools.combinations(range(size), num_kept)]
    sets = shape[0] * shape[1] // size
    return np.array([list(itertools.chain(*parts)) for parts in itertools.product(one, repeat=sets)]).reshape(
        -1, *shape
    )
