"""Prunes the linear layers of any model, one by one, each on its own output error."""

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from sa_jax.annealing.inputs import check_key, described
from sa_jax.checks import number
from sa_jax.networks import masks, patterns
from sa_jax.networks.arrays import as_numbers
from sa_jax.networks.patterns import Layer, Pattern
from sa_jax.networks.trees import leaves_by_name, no_such_leaf
from sa_jax.pruning.allocation import equal_counts
from sa_jax.pruning.gram import check_layer, damped
from sa_jax.pruning.linear import prune_linear_sharded
from sa_jax.pruning.moments import Moments, dense_correction
from sa_jax.pruning.nesting import nest_masks
from sa_jax.types import InputError, PyTree


def prune_layers(
    rng_key: jax.Array,
    params: PyTree,
    moments: Mapping[str, Moments],
    density: float | Pattern = 0.5,
    sweeps: float = 2.0,
    damping: float = 0.01,
) -> PyTree:
    """Prunes the linear layers of any model, each by annealing its mask on the squared error of its outputs.

    Needs no labels and no gradients, and changes no weight. See `prune_linear` for the method. Each layer's random
    numbers depend on `rng_key` and the layer's name alone.

    Args:
      rng_key: a key, `[]`.
      params: Flax params of any model, with or without the outer level `params`; the kernel of layer
        'encoder/Dense_0' is the leaf 'encoder/Dense_0/kernel', float `[inputs, outputs]`.
      moments: of each layer's inputs, by the layer's path, as `collect_moments` gives them. Layers without moments
        are not pruned: leave out a layer to keep it whole.
      density: the share of the branches of all these layers together that is kept, in (0, 1]. Exactly
        `round(density * total)` branches are kept, with equal density in all layers up to rounding. Or a pattern,
        such as `patterns.NM(2, 4)`, which holds in each layer.
      sweeps: number of draws for each row of a layer, divided by the number of the layer's inputs.
      damping: share of the mean diagonal of each Gram matrix that is added to its diagonal, at least 0.

    Returns:
      The masks, nested like `params`: only the pruned kernels, bool `[inputs, outputs]`, True where a branch is
      kept.

    Raises:
      InputError: no moments, moments of a layer that the params do not have, a density that is neither a pattern
        nor a number in (0, 1], a pattern that does not fit a layer, a Gram matrix that is not one, or no key.

    >>> from sa_jax import apply_masks, collect_moments
    >>> from sa_jax.networks.mlp import MLP
    >>> x = jax.random.normal(jax.random.key(0), (64, 8))
    >>> model = MLP([16, 2])
    >>> params = model.init(jax.random.key(1), x)
    >>> moments = collect_moments(model, params, [x])
    >>> masks = prune_layers(jax.random.key(2), params, moments, density=0.25)
    >>> {name: (layer["kernel"].shape, int(layer["kernel"].sum())) for name, layer in masks["params"].items()}
    {'Dense_0': ((8, 16), 32), 'Dense_1': ((16, 2), 8)}
    >>> model.apply(apply_masks(params, masks), x).shape
    (64, 2)
    """
    check_key(rng_key)
    damping = number("damping", damping, least=0)
    has_outer = isinstance(params, Mapping) and "params" in params
    inner = params["params"] if has_outer else params
    paths, weights = _layers(inner, moments)
    wanted = _patterns({name: weight.shape for name, weight in weights.items()}, density)
    found = {}
    for name, weight in weights.items():
        layer = moments[name]
        mask = jnp.zeros(weight.shape, bool)
        if (pattern := wanted[name]) is not None:
            gram, correction = damped(layer.gram, damping), dense_correction(layer, weight)
            mask = prune_linear_sharded(layer_key(rng_key, name), weight, gram, pattern, sweeps, correction)
        found[paths[name]] = mask.T
    nested = nest_masks(inner, found)
    return {"params": nested} if has_outer else nested


def layer_key(rng_key: jax.Array, name: str) -> jax.Array:
    """Returns the key of a layer, `[]`, from its name: it does not depend on which other layers are pruned."""
    return jax.random.fold_in(rng_key, zlib.crc32(name.encode()))


def _layers(params: PyTree, moments: Mapping[str, Moments]) -> tuple[dict[str, str], dict[str, jax.Array]]:
    """The path of each layer's kernel, and each layer's weight `[outputs, inputs]`, by the layers with moments."""
    if not isinstance(moments, Mapping):
        raise InputError(f"moments must map names of layers to their moments, not {described(moments)}")
    if not moments:
        raise InputError("moments is empty: it must have the moments of at least one layer's inputs")
    leaves, paths, weights = leaves_by_name(params), {}, {}
    for name, layer in moments.items():
        if not isinstance(layer, Moments):
            raise InputError(
                f"moments of {name!r} must be Moments, as collect_moments returns them, not {described(layer)}"
            )
        paths[name] = f"{name}/kernel" if name else "kernel"  # a model that is one layer has no name
        if paths[name] not in leaves:
            raise InputError(no_such_leaf(paths[name], leaves))
        try:
            weight = as_numbers("the kernel", leaves[paths[name]]).T
            weights[name], _ = check_layer(weight, layer.gram)
        except InputError as error:
            raise InputError(f"layer {name!r}: {error}") from None
    return paths, weights


def _patterns(shapes: Mapping[str, tuple[int, ...]], density: float | Pattern) -> dict[str, Pattern | None]:
    """The pattern of each layer, of shape `(outputs, inputs)`; None where it keeps nothing."""
    patterns.refuse_text(density)
    if isinstance(density, Pattern):
        for name, (outputs, inputs) in shapes.items():
            try:
                patterns.rule_of(density).blocks((outputs, inputs))
            except InputError as error:
                raise InputError(f"layer {name!r}: {error}") from None
        return dict.fromkeys(shapes, density)
    sizes = [outputs * inputs for outputs, inputs in shapes.values()]
    counts = equal_counts(sizes, masks.num_kept(density, sum(sizes)))
    return {
        name: Layer(count / size) if count else None
        for name, count, size in zip(shapes, counts, sizes, strict=True)
    }
