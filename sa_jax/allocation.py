"""How densely each layer is kept under one budget for all, from how their errors grow."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax import patterns
from sa_jax.reconstruction import check_layer
from sa_jax.types import InputError

# The densities at which layers' errors are taken.
GRID = tuple(round(0.05 * i, 2) for i in range(1, 21))


def allocate(weights: Mapping[str, jax.Array], grams: Mapping[str, jax.Array], density: float) -> dict[str, float]:
    """Chooses each layer's density so that the sum of the layers' relative errors is least.

    A layer's error, over its squared output, is that of the largest `|w| * norm(input)` of each row (Wanda; Sun et
    al. 2024), at the densities of `GRID`. On the convex hulls of these curves the densities at which one more
    weight gains equally much everywhere are the best ones (Shoham & Gersho 1988, on bits).

    Args:
      weights: by layer, float `[outputs, inputs]`.
      grams: by layer, float `[inputs, inputs]`.
      density: kept / total over all layers, in (0, 1].

    Returns:
      By layer, in (0, 1]; their mean by layer size is `density`, but for what lies below the grid.

    Raises:
      InputError: a density outside (0, 1], or a layer without a Gram matrix that fits.

    >>> weights = {"even": jnp.ones((4, 20)), "uneven": jnp.ones((4, 20)).at[:, 2:].set(0.01)}
    >>> allocate(weights, dict.fromkeys(weights, jnp.eye(20)), 0.5)
    {'even': 0.9, 'uneven': 0.1}
    """
    if not 0 < density <= 1:
        raise InputError(f"density must be a number in (0, 1], not {density}")
    if missing := set(weights) - set(grams):
        raise InputError(f"no Gram matrix for {min(missing)}")
    for name, weight in weights.items():
        check_layer(weight, grams[name])
    curves = np.stack([np.asarray(_errors(weight, grams[name])) for name, weight in weights.items()])
    sizes = np.array([np.size(weight) for weight in weights.values()], float)
    return dict(zip(weights, shares(curves, sizes, density).tolist(), strict=True))


def shares(curves: np.ndarray, sizes: np.ndarray, density: float) -> np.ndarray:
    """The densities of least total error.

    Args:
      curves: errors at the densities of `GRID`, float `[layers, densities]`.
      sizes: weights of each layer, float `[layers]`.
      density: of all layers together, in (0, 1]; below the first of the grid it is that of each layer.

    Returns:
      float `[layers]`.
    """
    if density <= GRID[0]:
        return np.full(len(sizes), density)
    steps = []  # gain per weight, layer, more density
    for layer, curve in enumerate(curves):
        here = 0
        while here < len(GRID) - 1:  # along the lower convex hull
            slopes = [(curve[here] - curve[to]) / (GRID[to] - GRID[here]) for to in range(here + 1, len(GRID))]
            to = here + 1 + int(np.argmax(slopes))
            steps.append((slopes[to - here - 1] / sizes[layer], layer, GRID[to] - GRID[here]))
            here = to
    found = np.full(len(sizes), GRID[0])
    left = (density - GRID[0]) * sizes.sum()
    for _, layer, more in sorted(steps, key=lambda step: -step[0]):
        taken = min(more, max(left, 0.0) / sizes[layer])
        found[layer] += taken
        left -= taken * sizes[layer]
    return np.round(np.minimum(found, 1.0), 6)


@jax.jit
def _errors(weight, gram):
    """Relative error of a layer at each density of the grid, float `[densities]`."""
    weight, gram = weight.astype(jnp.float32), gram.astype(jnp.float32)
    inputs = weight.shape[1]
    scores = weight**2 * jnp.diag(gram)
    ranks = jnp.argsort(jnp.argsort(-scores, axis=1, stable=True), axis=1)
    kept = jnp.array([max(patterns.parse(density).kept_of(inputs), 1) for density in GRID])

    def error(kept):
        change = jnp.where(ranks < kept, 0.0, weight)
        return ((change @ gram) * change).sum()

    whole = ((weight @ gram) * weight).sum()
    return jax.lax.map(error, kept) / jnp.where(whole > 0, whole, 1.0)
