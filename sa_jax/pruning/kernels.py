"""Prunes chosen kernels of any model: by full evaluation, or incrementally where it is a multilayer perceptron."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.annealing.chain import anneal
from sa_jax.annealing.inputs import check_key, check_takes, described
from sa_jax.checks import whole
from sa_jax.landscapes.full import full_model
from sa_jax.moves import uniform_swap
from sa_jax.networks import masks, mlp
from sa_jax.networks.arrays import as_arrays
from sa_jax.networks.samples import as_samples, check_values
from sa_jax.networks.trees import flat_params, leaves_by_name, no_such_leaf
from sa_jax.pruning.mlp import prune
from sa_jax.pruning.nesting import nest_masks
from sa_jax.pruning.options import Options, check_options, refuse_unknown
from sa_jax.pruning.problem import (
    Problem,
    calibrated_scale,
    calibrated_temperatures,
    make_energy,
    make_schedule,
    teacher_of,
)
from sa_jax.types import AnnealResult, InputError, PyTree

# A model counts as a multilayer perceptron if its logits differ from those of one by at most this share of the
# largest logit.
SAME_LOGITS = 1e-4
# The fields of `Options` that need no knowledge of the model.
OPTIONS = ("energy", "start", "schedule", "logit_scale", "temperature_start", "temperature_end")


def prune_kernels(
    rng_key: jax.Array,
    apply_fn: Callable[[PyTree, jax.Array], jax.Array],
    params: PyTree,
    x: jax.Array,
    y: jax.Array,
    chosen: Sequence[str] | None = None,
    density: float = 0.1,
    num_steps: int = 10_000,
    **options: Any,
) -> tuple[PyTree, AnnealResult]:
    """Prunes chosen kernels of any model by annealing their masks; no weight changes, and no derivative is taken.

    Each proposal evaluates the whole model. A multilayer perceptron whose kernels are all chosen is the exception:
    it is recognised by comparing logits, and annealed incrementally, by `sa_jax.prune`. To prune a dense head
    behind a trunk that stays as it is, compute the trunk's outputs once and prune the head alone on them.

    Args:
      rng_key: a key, `[]`.
      apply_fn: `(params, x) -> logits`, float `[samples, classes]`; jittable.
      params: any pytree of arrays, such as Flax params.
      x: inputs, `[samples, ...]`. Every proposal uses all of them.
      y: labels, int `[samples]`.
      chosen: paths of the kernels, such as 'Dense_0/kernel', of any rank; None for all matrices called 'kernel'.
      density: kept / total over the chosen kernels, in (0, 1]; exactly `round(density * total)` branches are kept.
      num_steps: number of proposals, which are uniform swaps, at least 1.
      **options: the fields of `Options` that `OPTIONS` names; `start` is 'magnitude' or 'random'.

    Returns:
      The masks, bool like the kernels, nested like `params`: mappings hold only the chosen kernels, other pytrees
      hold None in place of all other leaves. And the `AnnealResult`, whose positions are flat masks, bool
      `[total]`: the kernels follow each other in the order of `jax.tree.leaves(params)`, or in network order where
      the model is a multilayer perceptron.

    Raises:
      InputError: no such kernel, logits or labels that do not fit each other, values that are not finite, a
        density that keeps nothing, an unknown option, or arguments of another kind, such as params with a leaf
        that is not an array.

    >>> x = jax.random.normal(jax.random.key(0), (64, 8))
    >>> y = (x[:, 0] > x[:, 1]).astype(jnp.int32)
    >>> params = {"gate": jnp.ones(8), "Dense_0": {"kernel": jax.random.normal(jax.random.key(1), (8, 2))}}
    >>> def apply_fn(params, x):
    ...     return (x * params["gate"]) @ params["Dense_0"]["kernel"]
    >>> found, result = prune_kernels(jax.random.key(2), apply_fn, params, x, y, density=0.25, num_steps=500)
    >>> jax.tree.map(lambda mask: int(mask.sum()), found)
    {'Dense_0': {'kernel': 4}}
    >>> apply_fn(masks.apply_masks(params, found), x).shape
    (64, 2)
    """
    refuse_unknown(options, OPTIONS, prune_kernels)
    check_key(rng_key)
    check_takes("apply_fn", apply_fn, "(params, x)", 2)
    options = {"start": "magnitude"} | options
    settings = check_options(Options(**{"move": "uniform", **options}))
    if (start := settings.start) in ("saliency", "score_search"):
        raise InputError(f"start must be one of magnitude, random, not {start!r}, which needs each layer's inputs")
    num_steps = whole("num_steps", num_steps, 1)
    params = as_arrays("params", params)
    paths = _chosen(params, chosen)
    x, y = as_samples(x, y)
    logits = jax.eval_shape(apply_fn, params, x)
    if not isinstance(logits, jax.ShapeDtypeStruct):
        raise InputError(
            f"apply_fn must give logits alone, not {described(logits)}: pick them, such as by "
            "lambda params, x: apply_fn(params, x)[0]"
        )
    shape = logits.shape
    kernels = {path: leaf for path, leaf in leaves_by_name(params).items() if path in paths}
    if len(shape) != 2 or y.shape != shape[:1] or not jnp.issubdtype(y.dtype, jnp.integer):
        raise InputError(
            "apply_fn must give logits [samples, classes], and labels be whole numbers [samples]: not "
            f"{list(shape)} and {y.dtype}{list(y.shape)}"
        )
    check_values(list(kernels.values()), x, y, shape[1])
    x, y = jnp.asarray(x), jnp.asarray(y)
    num_kept = masks.num_kept(density, sum(kernel.size for kernel in kernels.values()))
    perceptron = _perceptron(apply_fn, params, paths, x)
    if perceptron is not None:
        with_activation = {**options, "move": "uniform", "activation": perceptron}
        found, result = prune(rng_key, params, x, y, density, num_steps, **with_activation)
        return nest_masks(params, leaves_by_name(found)), result
    try:
        hash(apply_fn)
    except TypeError:  # a method of a module with lists in it
        apply_fn = partial(apply_fn)  # hashed by identity, and compiled again at each call
    result = _prune(rng_key, params, x, y, apply_fn, paths, num_kept, num_steps, settings)
    return nest_masks(params, masks.unflatten_like(result.best, kernels)), result


@partial(jax.jit, static_argnums=(4, 5, 6, 7, 8))
def _prune(rng_key, params, x, y, apply_fn, paths, num_kept, num_steps, options):
    mask_key, calibration_key, chain_key = jax.random.split(rng_key, 3)
    kernels = {path: leaves_by_name(params)[path] for path in paths}
    magnitude = jnp.concatenate([jnp.abs(kernel).ravel() for kernel in kernels.values()])
    random = options.start == "random"
    mask = masks.random(mask_key, magnitude.size, num_kept) if random else masks.by_score(magnitude, num_kept)
    dense_logits = apply_fn(params, x)
    start_logits = apply_fn(masks.apply_masks(params, masks.unflatten_like(mask, kernels)), x)
    logit_scale, trained = calibrated_scale(dense_logits, start_logits, y, options)
    data = (x, teacher_of(dense_logits) if options.energy == "kl_to_teacher" else y)
    swaps = uniform_swap()
    nothing = jnp.float32(0)
    problem = Problem(mlp.Network((), ()), data, mask, magnitude, logit_scale, nothing, nothing)
    landscape = full_model(apply_fn, params, paths, swaps, make_energy(problem, options))
    position = (mask, swaps.init(mask))
    start, end = calibrated_temperatures(calibration_key, landscape, position, data, trained, options)
    problem = problem._replace(temperature_start=start, temperature_end=end)
    schedule = make_schedule(problem, options, num_steps)
    result = anneal(chain_key, landscape, position, schedule, num_steps, data)
    return result._replace(best=result.best[0], final=result.final[0])


def _perceptron(apply_fn, params, paths, x) -> str | None:
    """The activation, where a multilayer perceptron of these kernels gives the model's logits; None elsewhere."""
    if x.ndim != 2:
        return None
    try:
        if not all(hasattr(leaf, "shape") for leaf in flat_params(params).values()):
            return None  # mappings with other nodes in them
        names, network = mlp.network_of(params)
        wanted = np.asarray(apply_fn(params, x))
        kernels = {f"{name}/kernel" for name in names}
        if kernels != set(paths) or network.sizes[0] != x.shape[1]:
            return None
        for activation in mlp.ACTIVATIONS:
            found = np.asarray(mlp.forward(network, x.astype(jnp.float32), activation))
            if np.abs(found - wanted).max(initial=0) <= SAME_LOGITS * np.abs(wanted).max(initial=0):
                return activation
    except (InputError, jax.errors.TracerArrayConversionError):
        pass  # not a perceptron, or traced inside a `jit` of the caller, where values cannot be compared
    return None


def _chosen(params: PyTree, chosen: Sequence[str] | None) -> tuple[str, ...]:
    leaves = leaves_by_name(params)
    if isinstance(chosen, str):
        raise InputError(f"chosen must be a list of paths, such as [{chosen!r}]")
    for path in chosen or ():
        if path not in leaves:
            raise InputError(no_such_leaf(path, leaves))
    kernels = [path for path, leaf in leaves.items() if jnp.ndim(leaf) == 2 and path.split("/")[-1] == "kernel"]
    wanted = kernels if chosen is None else [path for path in leaves if path in chosen]
    if not wanted:
        raise InputError(f"no kernel is chosen; the params hold {', '.join(list(leaves)[:8])}")
    return tuple(wanted)
