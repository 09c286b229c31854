"""Divides one budget among layers: equal densities, or densities of least total error."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.checks import number
from sa_jax.pruning.gram import check_layer
from sa_jax.types import InputError

# A layer's density differs from the common one by at most this much: the farther away, the less a layer's error
# says about the network's (OWL stays within 0.08; Yin et al. 2024). Of 0, 0.05, 0.1, 0.15, 0.2 and 0.45 this was
# the best or the second best, on sentences that do not come from the source of the calibration sentences.
SPAN = 0.1
# Number of densities at which each layer's error is computed.
POINTS = 21


def equal_counts(sizes: Sequence[int], num_kept: int) -> list[int]:
    """Returns the number of branches that each layer keeps at equal density, rounded by largest remainder.

    Args:
      sizes: number of branches of each layer.
      num_kept: number of branches that all layers keep together.

    >>> equal_counts([9, 6], 5)
    [3, 2]
    """
    exact = np.array(sizes) * num_kept / sum(sizes)
    counts = exact.astype(int)
    for layer in np.argsort(counts - exact, kind="stable")[: num_kept - counts.sum()]:
        counts[layer] += 1
    return [int(count) for count in counts]


def allocate(
    weights: Mapping[str, jax.Array], grams: Mapping[str, jax.Array], density: float, span: float = SPAN
) -> dict[str, float]:
    """Chooses each layer's density so that the sum of the layers' relative errors is least.

    A layer's error, relative to its squared output, is that of keeping the largest `|w| * norm(input)` of each row
    (Wanda; Sun et al. 2024), computed at densities around the common one. On the lower convex hulls of these
    curves, the best densities are those where one more weight gains equally much in every layer (Shoham & Gersho
    1988, on bits).

    Args:
      weights: by layer, float `[outputs, inputs]`.
      grams: by layer, float `[inputs, inputs]`.
      density: kept / total over all layers, in (0, 1].
      span: largest difference between a layer's density and `density`, at least 0; downwards at most half of
        `density`.

    Returns:
      The density of each layer's rows, in (0, 1], for `patterns.Unit`; their mean, weighted by layer size, is
      `density`.

    Raises:
      InputError: a density outside (0, 1], a span below 0, no layer, or a layer without a Gram matrix that fits.

    >>> weights = {"even": jnp.ones((4, 20)), "uneven": jnp.ones((4, 20)).at[:, 2:].set(0.01)}
    >>> found = allocate(weights, dict.fromkeys(weights, jnp.eye(20)), 0.5)
    >>> found["even"] > 0.55, found["uneven"] < 0.45
    (True, True)
    """
    density = number("density", density, above=0, most=1)
    span = number("span", span, least=0)
    if not weights:
        raise InputError("weights is empty: it must have the weight of at least one layer")
    if missing := set(weights) - set(grams):
        raise InputError(f"no Gram matrix for {min(missing)}")
    layers = {name: check_layer(weight, grams[name]) for name, weight in weights.items()}
    span = min(span, 1 - density, density / 2)
    grid = np.linspace(density - span, density + span, POINTS)
    curves = np.stack([np.asarray(_errors(weight, gram, grid)) for weight, gram in layers.values()])
    sizes = np.array([weight.size for weight, _ in layers.values()], float)
    return dict(zip(weights, shares(grid, curves, sizes, density).tolist(), strict=True))


def shares(grid: np.ndarray, curves: np.ndarray, sizes: np.ndarray, density: float) -> np.ndarray:
    """Returns the densities of least total error.

    Args:
      grid: the densities to choose from, rising, float `[densities]`.
      curves: each layer's error at these densities, float `[layers, densities]`.
      sizes: number of weights of each layer, float `[layers]`.
      density: of all layers together, within the grid.

    Returns:
      float `[layers]`.
    """
    steps = []  # gain per weight, layer, increase of density
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
    gram = gram.astype(jnp.float32)
    inputs = weight.shape[1]
    scores = weight**2 * jnp.diag(gram)[None]
    ranks = jnp.argsort(jnp.argsort(-scores, axis=1, stable=True), axis=1)

    def error(density):
        change = jnp.where(ranks.astype(jnp.float32) < jnp.maximum(jnp.round(density * inputs), 1), 0.0, weight)
        return ((change @ gram) * change).sum()

    whole = ((weight @ gram) * weight).sum()
    return jax.lax.map(error, jnp.asarray(grid, jnp.float32)) / jnp.where(whole > 0, whole, 1.0)
