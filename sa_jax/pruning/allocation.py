"""How densely each layer is kept under one budget for all, from how their errors grow."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.pruning.linear import check_layer
from sa_jax.types import InputError

# No layer is denser or sparser than all together by more: what a layer's error does to the network is known less
# well the farther one goes (OWL stays within 0.08; Yin et al. 2024). Of 0, 0.05, 0.1, 0.15, 0.2 and 0.45 the best
# or next to it, for sentences held out of the calibration's source.
SPAN = 0.1
# Densities at which layers' errors are taken.
POINTS = 21


def allocate(
    weights: Mapping[str, jax.Array], grams: Mapping[str, jax.Array], density: float, span: float = SPAN
) -> dict[str, float]:
    """Chooses each layer's density so that the sum of the layers' relative errors is least.

    A layer's error, over its squared output, is that of the largest `|w| * norm(input)` of each row (Wanda; Sun et
    al. 2024), at densities around the common one. On the convex hulls of these curves the densities at which one
    more weight gains equally much everywhere are the best ones (Shoham & Gersho 1988, on bits).

    Args:
      weights: by layer, float `[outputs, inputs]`.
      grams: by layer, float `[inputs, inputs]`.
      density: kept / total over all layers, in (0, 1].
      span: how far from it a layer's density may be, at least 0; below, no farther than half way to 0.

    Returns:
      By layer, in (0, 1]; their mean by layer size is `density`.

    Raises:
      InputError: a density outside (0, 1], a span below 0, or a layer without a Gram matrix that fits.

    >>> weights = {"even": jnp.ones((4, 20)), "uneven": jnp.ones((4, 20)).at[:, 2:].set(0.01)}
    >>> found = allocate(weights, dict.fromkeys(weights, jnp.eye(20)), 0.5)
    >>> found["even"] > 0.55, found["uneven"] < 0.45
    (True, True)
    """
    if not 0 < density <= 1:
        raise InputError(f"density must be a number in (0, 1], not {density}")
    if not span >= 0:
        raise InputError(f"span must be a number of at least 0, not {span}")
    if missing := set(weights) - set(grams):
        raise InputError(f"no Gram matrix for {min(missing)}")
    for name, weight in weights.items():
        check_layer(weight, grams[name])
    span = min(span, 1 - density, density / 2)
    grid = np.linspace(density - span, density + span, POINTS)
    curves = np.stack([np.asarray(_errors(weight, grams[name], grid)) for name, weight in weights.items()])
    sizes = np.array([np.size(weight) for weight in weights.values()], float)
    return dict(zip(weights, shares(grid, curves, sizes, density).tolist(), strict=True))


def shares(grid: np.ndarray, curves: np.ndarray, sizes: np.ndarray, density: float) -> np.ndarray:
    """The densities of least total error.

    Args:
      grid: densities in question, rising, float `[densities]`.
      curves: errors at them, float `[layers, densities]`.
      sizes: weights of each layer, float `[layers]`.
      density: of all layers together, within the grid.

    Returns:
      float `[layers]`.
    """
    steps = []  # gain per weight, layer, more density
    for layer, curve in enumerate(curves):
        here = 0
        while here < len(grid) - 1 and grid[-1] > grid[0]:  # along the lower convex hull
            slopes = [(curve[here] - curve[to]) / (grid[to] - grid[here]) for to in range(here + 1, len(grid))]
            to = here + 1 + int(np.argmax(slopes))
            steps.append((slopes[to - here - 1] / sizes[layer], layer, grid[to] - grid[here]))
            here = to
    found = np.full(len(sizes), grid[0])
    left = (density - grid[0]) * sizes.sum()
    for _, layer, more in sorted(steps, key=lambda step: -step[0]):
        taken = min(more, max(left, 0.0) / sizes[layer])
        found[layer] += taken
        left -= taken * sizes[layer]
    return np.round(np.minimum(found, 1.0), 6)


@jax.jit
def _errors(weight, gram, grid):
    """Relative error of a layer at each density of a grid, float `[densities]`."""
    weight, gram = weight.astype(jnp.float32), gram.astype(jnp.float32)
    inputs = weight.shape[1]
    scores = weight**2 * jnp.diag(gram)
    ranks = jnp.argsort(jnp.argsort(-scores, axis=1, stable=True), axis=1)

    def error(density):
        change = jnp.where(ranks < jnp.maximum(jnp.round(density * inputs), 1), 0.0, weight)
        return ((change @ gram) * change).sum()

    whole = ((weight @ gram) * weight).sum()
    return jax.lax.map(error, jnp.asarray(grid, jnp.float32)) / jnp.where(whole > 0, whole, 1.0)
