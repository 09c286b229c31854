"""Prunes a multilayer perceptron in one call."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sa_jax.annealing.chain import anneal
from sa_jax.annealing.inputs import check_key
from sa_jax.checks import whole
from sa_jax.landscapes.full import full_mlp
from sa_jax.moves import swap_within
from sa_jax.networks import masks, mlp, patterns
from sa_jax.networks.patterns import Pattern, Rows
from sa_jax.networks.samples import check_samples
from sa_jax.pruning.options import Options, check_options, check_pattern, refuse_unknown, score_steps
from sa_jax.pruning.problem import (
    calibrated_search,
    guiding_energy,
    make_energy,
    make_landscape,
    make_schedule,
    prepare,
    start_scores,
)
from sa_jax.pruning.scores import ScoreSettings, found_mask
from sa_jax.types import AnnealResult, InputError, PyTree


def prune(
    rng_key: jax.Array,
    params: PyTree,
    x: jax.Array,
    y: jax.Array,
    density: float | Pattern = 0.05,
    num_steps: int = 200_000,
    **options: Any,
) -> tuple[PyTree, AnnealResult]:
    """Prunes a multilayer perceptron by annealing the mask of its branches; no weight changes.

    Score search finds an initial mask (see `score_search`), and exact annealing improves it. Neither takes a
    derivative, unless you ask for `estimates="gradient"`. `start="magnitude"` anneals alone, from the largest
    weights.

    Args:
      rng_key: a key, `[]`.
      params: Flax params of a multilayer perceptron, with or without the outer level `params`; leaves named
        `kernel` and `bias`, layers in the order of their names. Biases are not masked.
      x: inputs, float `[samples, features]`. Every proposal uses all of them.
      y: labels, int `[samples]`.
      density: kept / total, in (0, 1]; exactly `round(density * total)` branches are kept. Or a pattern of each
        layer: `Unit(0.1)`, the share of each unit's inputs, `Layer(0.1)`, `NM(2, 4)`, `Block((4, 4), 0.5)` or
        `Columns(0.5)` of `sa_jax.patterns`. With a pattern, swaps are uniform, and annealing starts from the
        largest weights, without score search; `score_steps` and `estimates` are then unused. Blocks and columns
        need a full evaluation for each proposal.
      num_steps: number of proposals, at least 1.
      **options: fields of `Options`, such as `activation="tanh"`.

    Returns:
      The masks, nested like `params` without the biases, bool `[inputs, outputs]` like the kernels; and the
      `AnnealResult`, whose positions are flat masks, bool `[total]`.

    Raises:
      InputError: params that are not a multilayer perceptron, inputs or labels that do not fit it or are not
        finite, a density that keeps nothing, a pattern that does not fit a layer, an unknown option, or no key.

    >>> import jax, jax.numpy as jnp
    >>> from sa_jax import prune
    >>> from sa_jax.networks.mlp import MLP, apply
    >>> x = jax.random.normal(jax.random.key(0), (200, 8))
    >>> y = (x[:, 0] > x[:, 1]).astype(jnp.int32)
    >>> params = MLP([16, 2]).init(jax.random.key(1), x)
    >>> masks, result = prune(jax.random.key(2), params, x, y, density=0.25, num_steps=10_000)
    >>> int(result.best.sum())
    40
    >>> bool((apply(params, masks, x).argmax(-1) == y).mean() > 0.9)
    True
    """
    refuse_unknown(options, [name for name in Options._fields if name != "pattern"], prune)
    check_key(rng_key)
    num_steps = whole("num_steps", num_steps, 1)
    patterns.refuse_text(density)
    if isinstance(density, Pattern):
        options = {"move": "uniform", "start": "magnitude"} | options
    chosen = check_options(Options(**options))
    if chosen.nudge_share:
        raise InputError(
            "nudge_share changes weights, and prune returns only masks: use sa-jax run, or leave it at 0"
        )
    names, network = mlp.network_of(params)
    x, y = check_samples(network, x, y)
    arrays = network, jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)
    if isinstance(density, Pattern):
        _check_pattern(density, chosen, network)
        if patterns.rule_of(density).block == (1, 1):
            result = _prune(rng_key, *arrays, 0, num_steps, chosen._replace(pattern=density))
        else:
            result = _prune_blocks(rng_key, *arrays, density, num_steps, chosen)
    else:
        result = _prune(rng_key, *arrays, masks.num_kept(density, network.total), num_steps, chosen)
    if not isinstance(result.best_energy, Tracer) and not np.isfinite(result.best_energy):
        raise InputError("the initial mask has no finite energy: are the weights or inputs far too large?")
    return mlp.mask_tree(names, masks.unflatten(result.best, network.shapes)), result


def _check_pattern(pattern: Pattern, options: Options, network: mlp.Network) -> None:
    check_pattern(pattern, options)
    if isinstance(pattern, Rows):
        raise InputError(
            f"Rows would prune classes, the outputs of the last layer: use Columns({pattern.density})"
        )
    if options.backend == "native" and patterns.rule_of(pattern).block != (1, 1):
        raise InputError(f"{pattern!r} has no native code: leave backend at 'auto', or set 'xla'")
    patterns.network_sets(pattern, network.shapes)  # raises where the pattern does not fit a layer


@partial(jax.jit, static_argnums=(4, 5, 6))
def _prune(rng_key, network, x, y, num_kept, num_steps, options):
    setup_key, chain_key, search_key = jax.random.split(rng_key, 3)
    mask = None
    if options.start == "score_search":
        logit_scale, targets = calibrated_search(network, x, y, num_kept, options)
        steps = score_steps(options, network.total, len(x), num_steps)
        settings = ScoreSettings(steps, options.estimates)
        arguments = network, x, targets, num_kept, guiding_energy(logit_scale, options), options.activation
        mask = found_mask(search_key, *arguments, settings)
    problem = prepare(setup_key, network, x, y, num_kept, options, mask)
    schedule = make_schedule(problem, options, num_steps)
    return anneal(chain_key, make_landscape(problem, options), problem.mask, schedule, num_steps, problem.data)


@partial(jax.jit, static_argnums=(4, 5, 6))
def _prune_blocks(rng_key, network, x, y, pattern, num_steps, options):
    setup_key, chain_key, score_key = jax.random.split(rng_key, 3)
    saliency = mlp.saliency(network, x, options.activation)
    blocks = patterns.network_best(pattern, start_scores(score_key, network, saliency, options))

    def mask_of(blocks):
        return patterns.network_mask(pattern, blocks, network.shapes)

    problem = prepare(setup_key, network, x, y, 0, options, mask_of(blocks))
    swaps = swap_within(patterns.network_sets(pattern, network.shapes))
    schedule = make_schedule(problem, options, num_steps)
    landscape = full_mlp(network, swaps, make_energy(problem, options), options.activation, mask_of)
    result = anneal(chain_key, landscape, (blocks, swaps.init(blocks)), schedule, num_steps, problem.data)
    return result._replace(best=mask_of(result.best[0]), final=mask_of(result.final[0]))
