"""Prunes the linear layers and convolutions of any model, one by one, each on its own output error."""

import math
import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from sa_jax.annealing.inputs import check_key, described
from sa_jax.checks import number
from sa_jax.networks import masks, patterns
from sa_jax.networks.arrays import as_numbers
from sa_jax.networks.patterns import Channels, Kernels, Layer, Pattern
from sa_jax.networks.trees import leaves_by_name, no_such_leaf
from sa_jax.pruning.allocation import equal_counts
from sa_jax.pruning.convolutions import check_convolution, prune_convolution
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
    """Prunes the layers of any model, each by annealing its mask on the squared error of its outputs.

    Linear layers and convolutions are pruned. Needs no labels and no gradients, and changes no weight. See
    `prune_linear` for the method. Each layer's random numbers depend on `rng_key` and the layer's name alone.

    Args:
      rng_key: a key, `[]`.
      params: Flax params of any model, with or without the outer level `params`; the kernel of layer
        'encoder/Dense_0' is the leaf 'encoder/Dense_0/kernel', float `[inputs, outputs]`, or of a convolution
        `[*sizes, channels, outputs]`.
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
    paths, kernels = _layers(inner, moments)
    wanted = _patterns({name: kernel.shape for name, kernel in kernels.items()}, density)
    found = {}
    for name, kernel in kernels.items():
        pattern, layer, key = wanted[name], moments[name], layer_key(rng_key, name)
        if pattern is None:
            mask = jnp.zeros(kernel.shape, bool)
        elif kernel.ndim == 2:
            gram, correction = damped(layer.gram, damping), dense_correction(layer, kernel.T)
            mask = prune_linear_sharded(key, kernel.T, gram, pattern, sweeps, correction).T
        else:
            matrices, grams = check_convolution(kernel, layer.gram)
            grams = jax.vmap(damped, (0, None))(grams, damping)
            correction = dense_correction(layer, matrices if layer.gram.ndim == 3 else matrices[0])
            mask = prune_convolution(key, kernel, grams, pattern, sweeps, correction)
        found[paths[name]] = mask
    nested = nest_masks(inner, found)
    return {"params": nested} if has_outer else nested


def layer_key(rng_key: jax.Array, name: str) -> jax.Array:
    """Returns the key of a layer, `[]`, from its name: it does not depend on which other layers are pruned."""
    return jax.random.fold_in(rng_key, zlib.crc32(name.encode()))


def _layers(params: PyTree, moments: Mapping[str, Moments]) -> tuple[dict[str, str], dict[str, jax.Array]]:
    """The path of each layer's kernel, and the kernel, by the layers with moments."""
    if not isinstance(moments, Mapping):
        raise InputError(f"moments must map names of layers to their moments, not {described(moments)}")
    if not moments:
        raise InputError("moments is empty: it must have the moments of at least one layer's inputs")
    leaves, paths, kernels = leaves_by_name(params), {}, {}
    for name, layer in moments.items():
        if not isinstance(layer, Moments):
            raise InputError(
                f"moments of {name!r} must be Moments, as collect_moments returns them, not {described(layer)}"
            )
        paths[name] = f"{name}/kernel" if name else "kernel"  # a model that is one layer has no name
        if paths[name] not in leaves:
            raise InputError(no_such_leaf(paths[name], leaves))
        try:
            kernels[name] = kernel = jnp.asarray(as_numbers("the kernel", leaves[paths[name]]), jnp.float32)
            if kernel.ndim > 2:
                check_convolution(kernel, layer.gram)
            else:
                check_layer(kernel.T, layer.gram)
        except InputError as error:
            raise InputError(f"layer {name!r}: {error}") from None
    return paths, kernels


def _patterns(shapes: Mapping[str, tuple[int, ...]], density: float | Pattern) -> dict[str, Pattern | None]:
    """The pattern of each layer, by the shape of its kernel; None where it keeps nothing."""
    patterns.refuse_text(density)
    if isinstance(density, Pattern):
        for name, (*places, inputs, outputs) in shapes.items():
            try:
                if not isinstance(density, Kernels | Channels):
                    inputs *= math.prod(places)
                patterns.rule_of(density).blocks((outputs, inputs))
            except InputError as error:
                raise InputError(f"layer {name!r}: {error}") from None
        return dict.fromkeys(shapes, density)
    sizes = [math.prod(shape) for shape in shapes.values()]
    counts = equal_counts(sizes, masks.num_kept(density, sum(sizes)))
    return {
        name: Layer(count / size) if count else None
        for name, count, size in zip(shapes, counts, sizes, strict=True)
    }
