"""Chosen kernels of any model, annealed by full evaluation; a multilayer perceptron incrementally."""

import difflib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax import masks, models, pruning, weights
from sa_jax.anneal import anneal
from sa_jax.energies import Energy
from sa_jax.landscape import from_energy
from sa_jax.moves import Swaps, move_fn, uniform_swap
from sa_jax.pruning import Options, Problem
from sa_jax.types import AnnealResult, InputError, Landscape, PyTree

# How far logits may differ, of their greatest, for a model to be taken for a multilayer perceptron.
SAME_LOGITS = 1e-4
# Of `Options`, those that need no knowledge of the model.
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
) -> tuple[dict[str, jax.Array], AnnealResult]:
    """Anneals which weights of some kernels of a model stay; no weight changes, and no derivative is taken.

    Each proposal evaluates the whole model, but where the model is a multilayer perceptron with all of its kernels
    chosen: that is found by comparing logits, and annealed incrementally, by `sa_jax.prune`. A head behind a trunk
    that stays as it is, is one, too: prune it on what the trunk gives.

    Args:
      rng_key: a key, `[]`.
      apply_fn: `(params, x) -> logits`, float `[samples, classes]`; jittable.
      params: any pytree of arrays, such as Flax params.
      x: inputs, `[samples, ...]`. All are used in every proposal.
      y: labels, int `[samples]`.
      chosen: paths of the kernels, such as 'Dense_0/kernel', of any rank; None for all matrices called 'kernel'.
      density: kept / total over the chosen kernels, in (0, 1]; exactly `round(density * total)` weights stay.
      num_steps: proposals, uniform swaps, at least 1.
      **options: fields of `Options` named in `OPTIONS`; `start` is 'magnitude' or 'random'.

    Returns:
      The masks by path, bool like the kernels, for `masked`; and the `AnnealResult`, whose positions are flat
      masks, bool `[total]`, the kernels following each other in the order of the masks: that of the params, or of
      the network where it is a multilayer perceptron. `jax.tree.map` would sort them by name.

    Raises:
      InputError: no such kernel, logits or labels that do not fit each other, values that are not finite, a
        density that keeps nothing, or an unknown option.

    >>> x = jax.random.normal(jax.random.key(0), (64, 8))
    >>> y = (x[:, 0] > x[:, 1]).astype(jnp.int32)
    >>> params = {"gate": jnp.ones(8), "Dense_0": {"kernel": jax.random.normal(jax.random.key(1), (8, 2))}}
    >>> def apply_fn(params, x):
    ...     return (x * params["gate"]) @ params["Dense_0"]["kernel"]
    >>> found, result = prune_kernels(jax.random.key(2), apply_fn, params, x, y, density=0.25, num_steps=500)
    >>> {path: int(mask.sum()) for path, mask in found.items()}
    {'Dense_0/kernel': 4}
    >>> apply_fn(masked(params, found), x).shape
    (64, 2)
    """
    unknown = set(options) - set(OPTIONS)
    if unknown:
        raise InputError(f"unknown option {sorted(unknown)[0]!r}; options: {', '.join(OPTIONS)}")
    settings = pruning.check_options(Options(**{"move": "uniform", **options}))
    if settings.start == "saliency":
        raise InputError("start must be one of magnitude, random, not 'saliency', which needs each layer's inputs")
    if isinstance(num_steps, bool) or not hasattr(num_steps, "__index__") or num_steps < 1:
        raise InputError(f"num_steps must be a whole number of at least 1, not {num_steps!r}")
    paths = _chosen(params, chosen)
    x, y = jnp.asarray(x), jnp.asarray(y)
    shape = jax.eval_shape(apply_fn, params, x).shape
    kernels = {path: leaf for path, leaf in _leaves(params).items() if path in paths}
    if len(shape) != 2 or y.shape != shape[:1] or not jnp.issubdtype(y.dtype, jnp.integer):
        raise InputError(
            "apply_fn must give logits [samples, classes], and labels be whole numbers [samples]: not "
            f"{list(shape)} and {y.dtype}{list(y.shape)}"
        )
    pruning.check_values(list(kernels.values()), x, y, shape[1])
    kept = masks.num_kept(density, sum(kernel.size for kernel in kernels.values()))
    perceptron = _perceptron(apply_fn, params, paths, x)
    if perceptron is not None:
        in_order, activation = perceptron
        told = {**options, "move": "uniform", "activation": activation}
        tree, result = pruning.prune(rng_key, params, x, y, density, num_steps, **told)
        return {path: _leaves(tree)[path] for path in in_order}, result
    try:
        hash(apply_fn)
    except TypeError:  # a method of a module with lists in it
        apply_fn = partial(apply_fn)  # hashed as what it is, and compiled anew each time
    result = _prune(rng_key, params, x, y, apply_fn, paths, kept, int(num_steps), settings)
    return _unflatten(result.best, kernels), result


def masked(params: PyTree, kernel_masks: dict[str, jax.Array]) -> PyTree:
    """The params with the pruned weights of some kernels set to zero, all else as it was.

    Args:
      params: any pytree of arrays.
      kernel_masks: bool, of the kernels' shapes, by path.

    Returns:
      Of the structure of the params.

    Raises:
      InputError: a mask of no array of the params, or of another shape.
    """
    leaves = _leaves(params)
    for path, mask in kernel_masks.items():
        if path not in leaves:
            raise InputError(_no_array(path, leaves))
        if jnp.shape(mask) != jnp.shape(leaves[path]):
            shapes = list(jnp.shape(leaves[path])), list(jnp.shape(mask))
            raise InputError(f"the mask of {path!r} must have its shape, {shapes[0]}, not {shapes[1]}")

    def one(path, leaf):
        mask = kernel_masks.get(weights.leaf_name(path))
        return leaf if mask is None else jnp.where(mask, leaf, 0)

    return jax.tree_util.tree_map_with_path(one, params)


def full_model(
    apply_fn: Callable[[PyTree, jax.Array], jax.Array],
    params: PyTree,
    paths: Sequence[str],
    swaps: Swaps,
    energy: Energy,
) -> Landscape:
    """Makes the landscape of the masks over some kernels of a model, by full evaluation.

    Positions are `(mask, swaps.init(mask))`, as of `incremental.full_mlp`; the mask is flat, bool `[total]`, the
    kernels following each other in the order of the paths. Data are `(x, targets)`, as `apply_fn` and `energy`
    take them.

    Args:
      apply_fn: `(params, x) -> logits`, float `[samples, classes]`.
      params: any pytree of arrays.
      paths: of the kernels.
      swaps: how proposals are drawn.
      energy: of the logits, see `energies`.
    """
    kernels = {path: _leaves(params)[path] for path in paths}

    def energy_fn(position, x, *targets):
        return energy(apply_fn(masked(params, _unflatten(position[0], kernels)), x), *targets)

    return from_energy(energy_fn, move_fn(swaps))


@partial(jax.jit, static_argnums=(4, 5, 6, 7, 8))
def _prune(rng_key, params, x, y, apply_fn, paths, kept, num_steps, options):
    mask_key, calibration_key, chain_key = jax.random.split(rng_key, 3)
    kernels = {path: _leaves(params)[path] for path in paths}
    magnitude = jnp.concatenate([jnp.abs(kernel).ravel() for kernel in kernels.values()])
    random = options.start == "random"
    mask = masks.random(mask_key, magnitude.size, kept) if random else masks.by_score(magnitude, kept)
    dense_logits = apply_fn(params, x)
    start_logits = apply_fn(masked(params, _unflatten(mask, kernels)), x)
    logit_scale, trained = pruning.calibrated_scale(dense_logits, start_logits, y, options)
    data = (x, pruning.teacher_of(dense_logits) if options.energy == "kl_to_teacher" else y)
    swaps = uniform_swap()
    nothing = jnp.float32(0)
    problem = Problem(models.Network((), ()), data, mask, magnitude, logit_scale, nothing, nothing)
    landscape = full_model(apply_fn, params, paths, swaps, pruning.make_energy(problem, options))
    position = (mask, swaps.init(mask))
    start, end = pruning.calibrated_temperatures(calibration_key, landscape, position, data, trained, options)
    problem = problem._replace(temperature_start=start, temperature_end=end)
    schedule = pruning.make_schedule(problem, options, num_steps)
    result = anneal(chain_key, landscape, position, schedule, num_steps, data)
    return result._replace(best=result.best[0], final=result.final[0])


def _perceptron(apply_fn, params, paths, x) -> tuple[list[str], str] | None:
    """The kernels in network order and the activation, where a multilayer perceptron gives the model's logits."""
    if x.ndim != 2:
        return None
    try:
        names, network = models.network_of(params)
        wanted = np.asarray(apply_fn(params, x))
        in_order = [f"{name}/kernel" for name in names]
        if set(in_order) != set(paths) or network.sizes[0] != x.shape[1]:
            return None
        for activation in models.ACTIVATIONS:
            found = np.asarray(models.forward(network, x.astype(jnp.float32), activation))
            if np.abs(found - wanted).max(initial=0) <= SAME_LOGITS * np.abs(wanted).max(initial=0):
                return in_order, activation
    except (InputError, jax.errors.TracerArrayConversionError):
        pass  # no perceptron, or inside someone's jit, where values are not there to be compared
    return None


def _chosen(params: PyTree, chosen: Sequence[str] | None) -> tuple[str, ...]:
    leaves = _leaves(params)
    if isinstance(chosen, str):
        raise InputError(f"chosen must be a list of paths, such as [{chosen!r}]")
    for path in chosen or ():
        if path not in leaves:
            raise InputError(_no_array(path, leaves))
    kernels = [path for path, leaf in leaves.items() if jnp.ndim(leaf) == 2 and path.split("/")[-1] == "kernel"]
    wanted = kernels if chosen is None else [path for path in leaves if path in chosen]
    if not wanted:
        raise InputError(f"no kernel is chosen; the params hold {', '.join(list(leaves)[:8])}")
    return tuple(wanted)


def _no_array(path: Any, leaves: dict[str, Any]) -> str:
    close = difflib.get_close_matches(str(path), leaves, 1)
    there = f"did you mean {close[0]}?" if close else f"the params hold {', '.join(list(leaves)[:8])}"
    return f"no array {path!r} in the params; {there}"


def _leaves(tree: PyTree) -> dict[str, Any]:
    return {weights.leaf_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _unflatten(flat: jax.Array, kernels: dict[str, jax.Array]) -> dict[str, jax.Array]:
    parts, start = {}, 0
    for path, kernel in kernels.items():
        parts[path] = flat[start : start + math.prod(kernel.shape)].reshape(kernel.shape)
        start += math.prod(kernel.shape)
    return parts
