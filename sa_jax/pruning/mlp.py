"""Prune a multilayer perceptron in one call."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sa_jax.annealing.chain import anneal
from sa_jax.landscapes.full import full_mlp
from sa_jax.landscapes.mlp import masked_mlp
from sa_jax.moves import swap_within
from sa_jax.networks import masks, mlp, patterns
from sa_jax.networks.samples import check_samples
from sa_jax.pruning.options import Options, check_options
from sa_jax.pruning.problem import make_energy, make_landscape, make_schedule, prepare
from sa_jax.types import AnnealResult, InputError, PyTree


def prune(
    rng_key: jax.Array,
    params: PyTree,
    x: jax.Array,
    y: jax.Array,
    density: float | str = 0.05,
    num_steps: int = 200_000,
    **options: Any,
) -> tuple[PyTree, AnnealResult]:
    """Anneals which branches of a multilayer perceptron stay; no weight changes.

    The move 'informed' takes the derivative of the energy with respect to the mask, all else no derivative.

    Args:
      rng_key: a key, `[]`.
      params: Flax params of a multilayer perceptron, with or without the outer level `params`; leaves named
        `kernel` and `bias`, layers in order of their names. Biases are not masked.
      x: inputs, float `[samples, features]`. All are used in every proposal: some thousand are plenty.
      y: labels, int `[samples]`.
      density: kept / total, in (0, 1]; exactly `round(density * total)` branches stay. Or the pattern of each
        layer, see `patterns.parse`: '0.1' of each unit's inputs, 'layer:0.1', '2:4', '4x4:0.5', 'columns:0.5';
        then swaps are uniform. Blocks and columns take a full evaluation for each proposal.
      num_steps: proposals, at least 1.
      **options: fields of `Options`, such as `activation="tanh"`.

    Returns:
      `masks`, nested like `params` without the biases, bool like the kernels; and the `AnnealResult`, whose
      positions are flat masks, bool `[total]`.

    Raises:
      InputError: params that are no multilayer perceptron, inputs or labels that do not fit it or are not
        finite, a density that keeps nothing, an unknown option.

    >>> import jax, jax.numpy as jnp
    >>> from sa_jax import prune
    >>> from sa_jax.models import MLP, apply
    >>> x = jax.random.normal(jax.random.key(0), (200, 8))
    >>> y = (x[:, 0] > x[:, 1]).astype(jnp.int32)
    >>> params = MLP([16, 2]).init(jax.random.key(1), x)
    >>> masks, result = prune(jax.random.key(2), params, x, y, density=0.1, num_steps=10_000)
    >>> int(result.best.sum())
    16
    >>> bool((apply(params, masks, x).argmax(-1) == y).mean() > 0.9)
    True
    """
    if isinstance(num_steps, bool) or not hasattr(num_steps, "__index__") or num_steps < 1:
        raise InputError(f"num_steps must be a whole number of at least 1, not {num_steps!r}")
    unknown = set(options) - set(Options._fields)
    if unknown:
        raise InputError(f"unknown option {sorted(unknown)[0]!r}; options: {', '.join(Options._fields)}")
    pattern = patterns.parse(density) if isinstance(density, str) else None
    if pattern:
        options.setdefault("move", "uniform")
    chosen = check_options(Options(**options))
    if pattern and chosen.move != "uniform":
        raise InputError(f"pattern {density!r} needs move 'uniform', not {chosen.move!r}")
    if pattern and pattern.block == (1, 0):
        raise InputError("rows of the last layer are the classes: prune 'columns:...', the inputs of each layer")
    if chosen.nudge_share:
        raise InputError(
            "nudge_share moves weights, and prune returns masks alone: use sa-jax run, or leave it at 0"
        )
    names, network = mlp.network_of(params)
    if pattern:
        patterns.network_sets(pattern, network.shapes)  # raises where it does not fit
    kept = pattern or masks.num_kept(density, network.total)
    samples = [array if isinstance(array, jax.Array) else np.asarray(array) for array in (x, y)]
    check_samples(network, *samples)
    annealed = _prune_pattern if pattern else _prune
    result = annealed(rng_key, network, *map(jnp.asarray, samples), kept, int(num_steps), chosen)
    if not isinstance(result.best_energy, Tracer) and not np.isfinite(result.best_energy):
        raise InputError("the initial mask has no finite energy: are the weights or inputs far too large?")
    return mlp.mask_tree(names, masks.unflatten(result.best, network.shapes)), result


@partial(jax.jit, static_argnums=(4, 5, 6))
def _prune(rng_key, network, x, y, kept, num_steps, options):
    setup_key, chain_key = jax.random.split(rng_key)
    problem = prepare(setup_key, network, x, y, kept, options)
    schedule = make_schedule(problem, options, num_steps)
    return anneal(chain_key, make_landscape(problem, options), problem.mask, schedule, num_steps, problem.data)


@partial(jax.jit, static_argnums=(4, 5, 6))
def _prune_pattern(rng_key, network, x, y, pattern, num_steps, options):
    setup_key, chain_key, score_key = jax.random.split(rng_key, 3)
    scores = {
        "magnitude": lambda: [jnp.abs(kernel) for kernel in network.kernels],
        "saliency": lambda: masks.unflatten(mlp.saliency(network, x, options.activation), network.shapes),
        "random": lambda: masks.unflatten(jax.random.uniform(score_key, (network.total,)), network.shapes),
    }
    units = patterns.network_best(pattern, scores[options.start]())
    mask = patterns.network_mask(pattern, units, network.shapes)
    problem = prepare(setup_key, network, x, y, 0, options, mask)
    swaps = swap_within(patterns.network_sets(pattern, network.shapes))
    schedule = make_schedule(problem, options, num_steps)
    if pattern.block == (1, 1):
        landscape = masked_mlp(network, swaps, make_energy(problem, options), options.activation)
        return anneal(chain_key, landscape, mask, schedule, num_steps, problem.data)

    def mask_of(units):
        return patterns.network_mask(pattern, units, network.shapes)

    landscape = full_mlp(network, swaps, make_energy(problem, options), options.activation, mask_of)
    result = anneal(chain_key, landscape, (units, swaps.init(units)), schedule, num_steps, problem.data)
    return result._replace(best=mask_of(result.best[0]), final=mask_of(result.final[0]))
