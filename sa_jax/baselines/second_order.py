"""Masks and weights from the quadratic model of the loss, with the full empirical Fisher of some 1,000 samples.

The Fisher `F = damping * I + G^T G / n` is never formed: `G`, the samples' derivatives `[n, total]`, is enough
(Woodbury). On the host, in float64: `1 - small` decides.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from sa_jax.baselines.scores import sample_derivatives
from sa_jax.networks import masks
from sa_jax.networks.energies import Energy
from sa_jax.networks.mlp import Network
from sa_jax.types import InputError

# Added to the Fisher's diagonal (WoodFisher's default).
DAMPING = 1e-5
# Columns of G worked on at once, for memory's sake.
COLUMNS = 20_000
# Branches to prune, and to keep, that the swap search looks at in one round.
CANDIDATES = 256


class Fisher(NamedTuple):
    """The empirical Fisher of a network, by the derivatives of each sample.

    Attributes:
      derivatives: `G`, float32 `[samples, total]`.
      factor: lower Cholesky factor of `samples * damping * I + G G^T`, float64 `[samples, samples]`.
      damping: on the diagonal.
    """

    derivatives: np.ndarray
    factor: np.ndarray
    damping: float


def empirical_fisher(
    network: Network,
    x: jax.Array,
    y: jax.Array,
    activation: str = "relu",
    energy: Energy | None = None,
    damping: float = DAMPING,
) -> Fisher:
    """Takes the derivative of each sample's loss by all kernels.

    Args:
      network: the weights.
      x: inputs, float `[samples, features]`; memory grows as samples times branches.
      y: labels, int `[samples]`.
      activation: 'relu', 'tanh' or 'gelu'.
      energy: of the logits; None for the cross-entropy of the labels.
      damping: added to the diagonal, above 0.

    Raises:
      InputError: the Fisher cannot be inverted, its damping is too small for inputs of this size.
    """
    inputs, slopes = sample_derivatives(network, jnp.asarray(x), jnp.asarray(y), activation, energy)
    parts = [
        (np.asarray(a)[:, :, None] * np.asarray(d)[:, None, :]).reshape(len(x), -1)
        for a, d in zip(inputs, slopes, strict=True)
    ]
    derivatives = np.concatenate(parts, axis=1)
    gram = len(x) * damping * np.eye(len(x))
    for start in range(0, derivatives.shape[1], COLUMNS):
        columns = derivatives[:, start : start + COLUMNS].astype(np.float64)
        gram += columns @ columns.T
    try:
        return Fisher(derivatives, np.linalg.cholesky(gram), damping)
    except np.linalg.LinAlgError:
        raise InputError(
            f"the Fisher cannot be inverted with a damping of {damping:g}: scale the inputs"
        ) from None


def inverse_diagonal(fisher: Fisher) -> np.ndarray:
    """Diagonal of the inverse of the Fisher, float64 `[total]`, above 0."""
    total = fisher.derivatives.shape[1]
    explained = np.empty(total)
    for start in range(0, total, COLUMNS):
        columns = fisher.derivatives[:, start : start + COLUMNS].astype(np.float64)
        solved = scipy.linalg.solve_triangular(fisher.factor, columns, lower=True, overwrite_b=True)
        explained[start : start + COLUMNS] = (solved**2).sum(0)
    return np.maximum(1 - explained, 1e-9) / fisher.damping


def inverse_product(fisher: Fisher, vector: np.ndarray) -> np.ndarray:
    """The inverse of the Fisher times a vector, float64 `[total]`."""
    inner = scipy.linalg.cho_solve((fisher.factor, True), fisher.derivatives @ vector)
    return (vector - inner @ fisher.derivatives) / fisher.damping


def obs_mask(network: Network, fisher: Fisher, kept: int) -> jax.Array:
    """Keeps the branches of largest `w^2 / (2 [F^-1]_qq)` (OBS; Hassibi & Stork 1993, equation 5).

    One shot, as WoodFisher's (Singh & Alistarh 2020): the statistic is not taken anew after each branch.

    Args:
      network: the fixed weights.
      fisher: from `empirical_fisher`.
      kept: number of branches that stay.

    Returns:
      A flat mask, bool `[total]`.
    """
    weights = _flat_weights(network)
    return masks.by_score(jnp.asarray(weights**2 / (2 * inverse_diagonal(fisher))), kept)


def woodfisher(network: Network, fisher: Fisher, kept: int) -> tuple[jax.Array, Network]:
    """The mask of `obs_mask`, and weights moved to make up for each pruned branch as if it alone were pruned.

    `w <- w - sum_q w_q / [F^-1]_qq * F^-1 e_q` over the pruned branches `q` (Singh & Alistarh 2020, equation 10).

    Returns:
      The flat mask, bool `[total]`, and the network with its moved weights.
    """
    weights, diagonal = _flat_weights(network), inverse_diagonal(fisher)
    mask = masks.by_score(jnp.asarray(weights**2 / (2 * diagonal)), kept)
    removed = np.where(np.asarray(mask), 0.0, weights / diagonal)
    return mask, _with_weights(network, weights - inverse_product(fisher, removed))


def obs_update(network: Network, fisher: Fisher, mask: jax.Array) -> Network:
    """Moves the kept weights to where the quadratic model is lowest with all other branches at zero.

    The joint update of several weights of CBS (Yu et al. 2022, section 3.3), exact: a ridge regression over the
    samples.

    Args:
      network: the weights.
      fisher: from `empirical_fisher`.
      mask: flat, bool `[total]`.

    Returns:
      The network with its moved weights.
    """
    weights, keep = _flat_weights(network), np.asarray(mask)
    samples = len(fisher.derivatives)
    stays = fisher.derivatives[:, keep].astype(np.float64)
    gone = fisher.derivatives[:, ~keep] @ weights[~keep]
    gram = stays @ stays.T
    gram[np.diag_indices(samples)] += samples * fisher.damping
    weights[keep] += stays.T @ scipy.linalg.solve(gram, gone, assume_a="pos")
    return _with_weights(network, weights)


def cbs_mask(network: Network, fisher: Fisher, kept: int, start: jax.Array, num_rounds: int = 400) -> jax.Array:
    """Swaps branches while the quadratic model of the loss falls (after CBS; Yu et al. 2022, section 3.2).

    The model is `v^T F v / 2` with `v` the weights of the pruned branches. In each round the branches whose
    pruning raises it least are paired with those whose return lowers it most, by their own effects; of the first
    so many pairs that number is swapped which lowers the model, cross terms included, most.

    Args:
      network: the fixed weights.
      fisher: from `empirical_fisher`.
      kept: number of branches that stay.
      start: flat mask to begin with, bool `[total]`, with `kept` ones.
      num_rounds: at most; it stops where no swap it looks at lowers the model.

    Returns:
      A flat mask, bool `[total]`.
    """
    weights, samples = _flat_weights(network), len(fisher.derivatives)
    effects = fisher.derivatives * weights.astype(np.float32)  # of each branch's absence on each sample's loss
    own = (effects**2).sum(0) / samples + fisher.damping * weights**2
    mask = np.array(start, bool)
    total_effect = effects[:, ~mask].sum(1)
    for _ in range(num_rounds):
        along = total_effect @ effects / samples
        pruning = np.where(mask, along + own / 2, np.inf)
        growing = np.where(mask, np.inf, -along + own / 2 - fisher.damping * weights**2)
        count = min(CANDIDATES, kept, len(mask) - kept)
        if not count:
            break
        leave = np.argsort(pruning, kind="stable")[:count]
        enter = np.argsort(growing, kind="stable")[:count]
        steps = effects[:, leave] - effects[:, enter]
        paths = total_effect[:, None] + np.cumsum(steps, axis=1)
        ridge = np.cumsum(weights[leave] ** 2 - weights[enter] ** 2) * fisher.damping / 2
        model = (paths**2).sum(0) / (2 * samples) + ridge
        now = (total_effect**2).sum() / (2 * samples)
        best = int(model.argmin())
        if model[best] < now - 1e-9 * abs(now):
            leave, enter, total_effect = leave[: best + 1], enter[: best + 1], paths[:, best]
        else:
            # The best single pair of all those looked at, by the exact change of the model.
            cross = effects[:, leave].T @ effects[:, enter] / samples
            change = pruning[leave][:, None] + growing[enter] - cross
            i, j = np.unravel_index(change.argmin(), change.shape)
            if change[i, j] >= -1e-9 * abs(now):
                break
            leave, enter = leave[[i]], enter[[j]]
            total_effect = total_effect + (effects[:, leave] - effects[:, enter])[:, 0]
        mask[leave], mask[enter] = False, True
    return jnp.asarray(mask)


def _flat_weights(network: Network) -> np.ndarray:
    return np.asarray(masks.flatten(network.kernels), np.float64)


def _with_weights(network: Network, weights: np.ndarray) -> Network:
    kernels = masks.unflatten(jnp.asarray(weights, jnp.float32), network.shapes)
    return network._replace(kernels=tuple(kernels))
