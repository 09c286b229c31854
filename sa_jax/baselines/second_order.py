"""Prunes by the quadratic model of the loss, with the full empirical Fisher matrix of about 1,000 samples.

The Fisher matrix `F = damping * I + G^T G / n` is never formed: `G`, the samples' derivatives `[n, total]`, is
enough (Woodbury). Computed on the host in float64, because small differences from 1 decide.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from sa_jax.baselines.scores import sample_derivatives
from sa_jax.checks import number
from sa_jax.networks import masks
from sa_jax.networks.arrays import as_numbers
from sa_jax.networks.energies import Energy
from sa_jax.networks.mlp import Network
from sa_jax.types import InputError

# Added to the diagonal of the Fisher matrix (WoodFisher's default).
DAMPING = 1e-5
# Number of columns of G that are processed at once, to save memory.
COLUMNS = 20_000
# Number of branches to prune, and of branches to keep, that the swap search considers in one round.
CANDIDATES = 256


class Fisher(NamedTuple):
    """The empirical Fisher matrix of a network, from the derivatives of each sample.

    Attributes:
      derivatives: `G`, float32 `[samples, total]`.
      factor: lower Cholesky factor of `samples * damping * I + G G^T`, float64 `[samples, samples]`.
      damping: added to the diagonal.
    """

    derivatives: np.ndarray  # float32 [samples, total]
    factor: np.ndarray  # float64 [samples, samples]
    damping: float


def empirical_fisher(
    network: Network,
    x: jax.Array,
    y: jax.Array,
    activation: str = "relu",
    energy: Energy | None = None,
    damping: float = DAMPING,
) -> Fisher:
    """Computes the empirical Fisher matrix, from the derivative of each sample's loss with respect to all kernels.

    Args:
      network: the weights.
      x: inputs, float `[samples, features]`; memory grows as samples times branches.
      y: labels, int `[samples]`.
      activation: 'relu', 'tanh' or 'gelu'.
      energy: of the logits; None for the cross-entropy of the labels.
      damping: added to the diagonal, above 0.

    Raises:
      InputError: a damping that is not above 0, or a Fisher matrix that cannot be inverted, because the damping
        is too small for inputs of this size.
    """
    damping = number("damping", damping, above=0)
    x, y = (jnp.asarray(as_numbers(*part)) for part in (("inputs", x), ("labels", y)))
    inputs, slopes = sample_derivatives(network, x, y, activation, energy)
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
    """Returns the diagonal of the inverse of the Fisher matrix, float64 `[total]`, above 0."""
    total = fisher.derivatives.shape[1]
    explained = np.empty(total)
    for start in range(0, total, COLUMNS):
        columns = fisher.derivatives[:, start : start + COLUMNS].astype(np.float64)
        solved = scipy.linalg.solve_triangular(fisher.factor, columns, lower=True, overwrite_b=True)
        explained[start : start + COLUMNS] = (solved**2).sum(0)
    return np.maximum(1 - explained, 1e-9) / fisher.damping


def inverse_product(fisher: Fisher, vector: np.ndarray) -> np.ndarray:
    """Returns the inverse of the Fisher matrix times a vector, float64 `[total]`."""
    inner = scipy.linalg.cho_solve((fisher.factor, True), fisher.derivatives @ vector)
    return (vector - inner @ fisher.derivatives) / fisher.damping


def obs_mask(network: Network, fisher: Fisher, num_kept: int) -> jax.Array:
    """Keeps the branches of largest `w^2 / (2 [F^-1]_qq)` (OBS; Hassibi & Stork 1993, equation 5).

    One shot, as in WoodFisher (Singh & Alistarh 2020): the statistic is not computed again after each branch.

    Args:
      network: the fixed weights.
      fisher: from `empirical_fisher`.
      num_kept: number of branches that stay.

    Returns:
      A flat mask, bool `[total]`.
    """
    weights = _flat_weights(network)
    return masks.by_score(jnp.asarray(weights**2 / (2 * inverse_diagonal(fisher))), num_kept)


def woodfisher(network: Network, fisher: Fisher, num_kept: int) -> tuple[jax.Array, Network]:
    """Prunes as `obs_mask`, and updates the weights for each pruned branch as if pruned alone (WoodFisher).

    `w <- w - sum_q w_q / [F^-1]_qq * F^-1 e_q` over the pruned branches `q` (Singh & Alistarh 2020, equation 10).

    Args:
      network: the weights.
      fisher: from `empirical_fisher`.
      num_kept: number of branches that stay.

    Returns:
      The flat mask, bool `[total]`, and the network with its moved weights.
    """
    weights, diagonal = _flat_weights(network), inverse_diagonal(fisher)
    mask = masks.by_score(jnp.asarray(weights**2 / (2 * diagonal)), num_kept)
    removed = np.where(np.asarray(mask), 0.0, weights / diagonal)
    return mask, _with_weights(network, weights - inverse_product(fisher, removed))


def obs_update(network: Network, fisher: Fisher, mask: jax.Array) -> Network:
    """Updates the kept weights to the minimum of the quadratic model with all other branches at zero.

    This is the joint update of several weights in CBS (Yu et al. 2022, section 3.3), exact: a ridge regression
    over the samples.

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


def cbs_mask(
    network: Network, fisher: Fisher, num_kept: int, start: jax.Array, num_rounds: int = 400
) -> jax.Array:
    """Swaps branches while the quadratic model of the loss falls (after CBS; Yu et al. 2022, section 3.2).

    The model is `v^T F v / 2` with `v` the weights of the pruned branches. Each round orders the kept branches by
    how little pruning them alone raises the model, and the pruned branches by how much their return alone lowers
    it, and pairs them in this order. It swaps the first `n` pairs, with the `n` that lowers the model most, cross
    terms included.

    Args:
      network: the fixed weights.
      fisher: from `empirical_fisher`.
      num_kept: number of branches that stay.
      start: flat mask to begin with, bool `[total]`, with `num_kept` ones.
      num_rounds: largest number of rounds; the search stops earlier where no swap that it considers lowers the
        model.

    Returns:
      A flat mask, bool `[total]`.
    """
    weights, samples = _flat_weights(network), len(fisher.derivatives)
    effects = fisher.derivatives * weights.astype(np.float32)  # of pruning each branch, on each sample's loss
    own = (effects**2).sum(0) / samples + fisher.damping * weights**2
    mask = np.array(start, bool)
    total_effect = effects[:, ~mask].sum(1)
    for _ in range(num_rounds):
        along = total_effect @ effects / samples
        pruning = np.where(mask, along + own / 2, np.inf)
        growing = np.where(mask, np.inf, -along + own / 2 - fisher.damping * weights**2)
        count = min(CANDIDATES, num_kept, len(mask) - num_kept)
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
            # The best single pair of all considered, by the exact change of the model.
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
