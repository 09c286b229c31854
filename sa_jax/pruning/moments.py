"""Collects the second moments of linear layers' inputs, batch by batch; the inputs themselves are not kept."""

import inspect
import math
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.annealing.inputs import described
from sa_jax.checks import native
from sa_jax.networks.arrays import as_arrays
from sa_jax.pruning.patches import Convolution, patch_size, sums
from sa_jax.types import InputError, PyTree

# Arguments of `nn.Module.apply` that are not passed to the module's method.
APPLY_KEYWORDS = ("rngs", "mutable", "capture_intermediates")


class Moments(NamedTuple):
    """The moments of a layer's inputs `x`. Those of a convolution are its patches.

    A grouped convolution has the moments of each group: `gram`, `mean` and `change` have a leading axis `groups`.

    Attributes:
      gram: mean of `x x'`, the Gram matrix, float32 `[inputs, inputs]`.
      mean: mean of `x`, float32 `[inputs]`.
      count: number of input vectors, float32 `[]`.
      change: mean of `x (x - d)'`, with `d` the dense network's inputs to the same layer, float32
        `[inputs, inputs]`; None where the dense network was not run.
    """

    gram: jax.Array  # float32 [inputs, inputs]
    mean: jax.Array  # float32 [inputs]
    count: jax.Array  # float32 []
    change: jax.Array | None = None  # float32 [inputs, inputs]


def no_inputs(inputs: int) -> Moments:
    """Returns the moments of no input vectors at all, for a layer with this number of inputs."""
    gram, mean, count = (jnp.zeros(shape, jnp.float32) for shape in ((inputs, inputs), (inputs,), ()))
    return Moments(gram, mean, count)


def with_inputs(
    moments: Moments, x: jax.Array, weight: jax.Array | None = None, dense: jax.Array | None = None
) -> Moments:
    """Returns the moments with more inputs added; pure, with no more memory than one Gram matrix.

    Args:
      moments: the moments of the earlier inputs.
      x: inputs, float `[..., inputs]`.
      weight: weight of each input vector in the means, 0 for padding, float `[...]`; None for 1.
      dense: the dense network's inputs to the same layer, float `[..., inputs]`; given from the first inputs on,
        or never.

    >>> moments = with_inputs(no_inputs(2), jnp.array([[1.0, 0.0], [3.0, 2.0]]))
    >>> moments.gram.tolist(), moments.mean.tolist()
    ([[5.0, 3.0], [3.0, 2.0]], [2.0, 1.0])
    """
    x = jnp.asarray(native(x), jnp.float32).reshape(-1, x.shape[-1])
    weight = jnp.ones(len(x), jnp.float32) if weight is None else jnp.asarray(native(weight)).reshape(-1)
    weight = weight.astype(jnp.float32)
    count = moments.count + weight.sum()
    before, new = moments.count / jnp.maximum(count, 1e-12), 1 / jnp.maximum(count, 1e-12)
    gram = before * moments.gram + new * jnp.dot(x.T * weight[None], x, precision="highest")
    change = moments.change
    if dense is not None:
        moved = x - jnp.asarray(native(dense), jnp.float32).reshape(x.shape)
        change = 0.0 if change is None else before * change
        change += new * jnp.dot(x.T * weight[None], moved, precision="highest")
    return Moments(gram, before * moments.mean + new * (weight @ x), count, change)


def no_patches(convolution: Convolution, channels: int) -> Moments:
    """Returns the moments of no patches at all, for a convolution of this number of input channels.

    Raises:
      InputError: the groups do not divide the channels.
    """
    empty = no_inputs(patch_size(convolution, channels))
    if convolution.groups == 1:
        return empty
    gram, mean = (jnp.zeros((convolution.groups, *one.shape), jnp.float32) for one in (empty.gram, empty.mean))
    return Moments(gram, mean, empty.count)


def with_patches(
    moments: Moments,
    x: jax.Array,
    convolution: Convolution,
    weight: jax.Array | None = None,
    dense: jax.Array | None = None,
) -> Moments:
    """Returns the moments with all patches of more inputs added; pure. Patches are never held.

    Args:
      moments: the moments of the earlier patches; at first `no_patches`.
      x: inputs of the convolution, float `[..., *sizes, channels]`.
      convolution: its geometry.
      weight: weight of each sample in the means, 0 for padding, float `[...]`; None for 1.
      dense: the dense network's inputs to the same layer, of the shape of `x`; given from the first inputs on, or
        never.

    Raises:
      InputError: inputs that do not fit the convolution.

    >>> column = Convolution((2,))
    >>> moments = with_patches(no_patches(column, 1), jnp.array([[[1.0], [2.0], [3.0]]]), column)
    >>> moments.gram.tolist(), moments.mean.tolist()  # of the patches [1, 2] and [2, 3]
    ([[2.5, 4.0], [4.0, 6.5]], [1.5, 2.5])
    """
    shape = jnp.shape(x)[-1 - len(convolution.kernel_size) :]
    x = jnp.asarray(native(x), jnp.float32).reshape(-1, *shape)
    weight = jnp.ones(len(x), jnp.float32) if weight is None else jnp.asarray(native(weight)).reshape(-1)
    grams, totals, patches = sums(x, weight.astype(jnp.float32), convolution)
    count = moments.count + patches
    before, new = moments.count / jnp.maximum(count, 1e-12), 1 / jnp.maximum(count, 1e-12)
    change = moments.change
    if dense is not None:
        moved = x - jnp.asarray(native(dense), jnp.float32).reshape(x.shape)
        changes, _, _ = sums(x, weight.astype(jnp.float32), convolution, moved)
        change = 0.0 if change is None else before * change
        change += new * changes.reshape(moments.gram.shape)
    gram = before * moments.gram + new * grams.reshape(moments.gram.shape)
    return Moments(gram, before * moments.mean + new * totals.reshape(moments.mean.shape), count, change)


def dense_correction(moments: Moments, weight: jax.Array) -> jax.Array | None:
    """Returns the correction with which a layer behind pruned layers approximates the dense network.

    Args:
      moments: moments of the layer's inputs, with `Moments.change`.
      weight: weight of the layer, float `[outputs, inputs]`; of a grouped convolution `[groups, outputs, inputs]`.

    Returns:
      float32, of the shape of the weight, for `prune_linear` and `refit`; None where `Moments.change` is None.
    """
    if moments.change is None:
        return None
    weight, change = (jnp.asarray(native(part), jnp.float32) for part in (weight, moments.change))
    return weight @ jnp.swapaxes(change, -1, -2)


def collect_recorded(
    forward: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Mapping[str, Any]],
    layers: Container[str] | None = None,
    dense: PyTree | None = None,
) -> dict[str, Moments]:
    """Collects the moments of the inputs of all layers that a function records.

    Memory holds one batch and the Gram matrices, whatever the number of batches. Layers with the very same inputs,
    such as query, key and value, share one Gram matrix. Where a layer is recorded several times, all its inputs
    count.

    Args:
      forward: called as `forward(params, record=record, **batch)`, under `jit`. For each linear layer it calls
        `record(layer, x, weight)` with the layer's name, its inputs, float `[..., inputs]`, and, if needed, the
        weight of each input vector in the means, float or bool `[...]`. For each convolution it calls
        `record(layer, x, weight, convolution)` with inputs `[..., *sizes, channels]`, the weight of each sample or
        None, and a `Convolution`. These calls must not be inside `jax.lax.scan` or another loop of JAX.
      params: first argument of `forward`.
      batches: each batch maps names to arrays. Batches of equal shapes compile once.
      layers: names of the layers to collect; None for all. What only later layers need is not computed.
      dense: params of the dense network, where `params` are those of the pruned network. Its inputs to the same
        layers are then used too, for `Moments.change`.

    Returns:
      The moments by layer, in the order in which the layers were first recorded.

    Raises:
      InputError: no batch, no layer recorded, a `forward` that is not a function, or params or batches that hold
        something else than arrays.

    >>> def forward(params, x, record):
    ...     record("first", x)
    ...     hidden = jax.nn.relu(x @ params["first"])
    ...     record("second", hidden)
    ...     return hidden @ params["second"]
    >>> params = {"first": jnp.ones((8, 16)), "second": jnp.ones((16, 2))}
    >>> moments = collect_recorded(forward, params, [{"x": jnp.ones((32, 8))}, {"x": jnp.zeros((32, 8))}])
    >>> {name: (moment.gram.shape, int(moment.count)) for name, moment in moments.items()}
    {'first': ((8, 8), 64), 'second': ((16, 16), 64)}
    """
    if not callable(forward):
        raise InputError(f"forward must be a function of (params, record, ...), not {described(forward)}")
    params, dense = as_arrays("params", params), as_arrays("dense", dense)
    places: dict[str, int] = {}

    @jax.jit
    def of_batch(params: PyTree, dense: PyTree | None, batch: Mapping[str, Any]) -> list[Moments]:
        def recorded_by(params: PyTree) -> dict[str, list[tuple[jax.Array, Any, Convolution | None]]]:
            recorded: dict[str, list[tuple[jax.Array, Any, Convolution | None]]] = {}

            def record(
                layer: str, x: jax.Array, weight: Any = None, convolution: Convolution | None = None
            ) -> None:
                if jnp.ndim(x) == 0:
                    raise InputError(f"layer {layer!r}: the recorded inputs must be [..., inputs], not one number")
                samples = jnp.shape(x)[: -1 - (0 if convolution is None else len(convolution.kernel_size))]
                if weight is not None and jnp.size(weight) != math.prod(samples):
                    shapes = list(samples), list(jnp.shape(weight))
                    raise InputError(
                        f"layer {layer!r}: the weight of its inputs must be {shapes[0]}, not {shapes[1]}"
                    )
                if layers is None or layer in layers:
                    recorded.setdefault(layer, []).append((x, weight, convolution))

            forward(params, record=record, **batch)
            return recorded

        recorded = recorded_by(params)
        recorded_dense = None if dense is None else recorded_by(dense)
        if recorded_dense is not None and _counts(recorded_dense) != _counts(recorded):
            raise InputError("forward must record the same layers for the dense params as for params")
        distinct: dict[tuple[tuple[int, str], ...], Moments] = {}
        for layer, calls in recorded.items():
            same = tuple((id(x), str(convolution)) for x, _, convolution in calls)
            if same not in distinct:
                others = (
                    [None] * len(calls) if recorded_dense is None else [call[0] for call in recorded_dense[layer]]
                )
                distinct[same] = _of_calls(layer, calls, others)
            places[layer] = list(distinct).index(same)
        return list(distinct.values())

    moments: list[Moments] | None = None
    for batch in batches:
        if not isinstance(batch, Mapping):
            raise InputError(f"each batch must map names to arrays, such as {{'x': x}}, not {described(batch)}")
        new = of_batch(params, dense, as_arrays("batch", batch))
        moments = new if moments is None else _both(moments, new)
    if moments is None:
        raise InputError("at least one batch is needed")
    if not places:
        raise InputError("found no linear layer (such as nn.Dense or nn.Conv) in the model")
    return {layer: moments[place] for layer, place in places.items()}


def _of_calls(layer: str, calls: list[tuple[jax.Array, Any, Convolution | None]], others: list[Any]) -> Moments:
    """The moments of all inputs of a layer, beside those of the dense network."""
    x, _, convolution = calls[0]
    try:
        moments = no_inputs(x.shape[-1]) if convolution is None else no_patches(convolution, x.shape[-1])
        for (x, weight, convolution), other in zip(calls, others, strict=True):
            if convolution is None:
                moments = with_inputs(moments, x, weight, other)
            else:
                moments = with_patches(moments, x, convolution, weight, other)
    except InputError as error:
        raise InputError(f"layer {layer!r}: {error}") from None
    return moments


def _counts(recorded: Mapping[str, list]) -> dict[str, int]:
    return {layer: len(calls) for layer, calls in recorded.items()}


def collect_moments(
    module: nn.Module,
    variables: PyTree,
    batches: Iterable[Any],
    method: Callable | str | None = None,
    **keywords: Any,
) -> dict[str, Moments]:
    """Collects the moments of the inputs of all linear layers of a Flax Linen model, as `collect_recorded` does.

    Args:
      module: the model. Every layer with a parameter `kernel [inputs, outputs]`, such as `nn.Dense`, is collected,
        at any depth, and so is every `nn.Conv`, but for those with an input dilation or a mask.
      variables: variables of the model, as `module.init` returns them.
      batches: arguments of each call of the model: a tuple of arrays, or one array. Batches of equal shapes
        compile once.
      method: method of the module to call; None for `__call__`.
      **keywords: keyword arguments of each call, such as `train=False`, or of `module.apply`, such as `rngs`.

    Returns:
      The moments by the layer's path, such as 'encoder/Dense_0', in the order in which the layers are first
      called.

    Raises:
      InputError: no batch, no linear layer, or arguments that the model does not take.

    >>> from sa_jax.networks.mlp import MLP
    >>> x = jax.random.normal(jax.random.key(0), (64, 8))
    >>> model = MLP([16, 2])
    >>> moments = collect_moments(model, model.init(jax.random.key(1), x), [x[:32], x[32:]])
    >>> {name: moment.gram.shape for name, moment in moments.items()}
    {'Dense_0': (8, 8), 'Dense_1': (16, 16)}
    """
    if not isinstance(module, nn.Module):
        raise InputError(
            f"module must be a Flax Linen module, not {described(module)}; collect_recorded takes any model"
        )
    variables = as_arrays("variables", variables)
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise InputError("variables must be as module.init returns them: give {'params': params}")

    def forward(variables: PyTree, record: Callable[..., None], arguments: tuple) -> None:
        def intercept(call, args, kwargs, context):
            layer = context.module
            if context.method_name == "__call__" and layer.has_variable("params", "kernel") and args:
                x, kernel = args[0], layer.get_variable("params", "kernel")
                if type(layer) is nn.Conv:
                    if layer.mask is None and np.all(np.equal(layer.input_dilation or 1, 1)):
                        record("/".join(layer.path), x, None, _convolution_of(layer))
                elif kernel.ndim == 2 and jnp.shape(x)[-1:] == kernel.shape[:1]:
                    record("/".join(layer.path), x)
            return call(*args, **kwargs)

        with nn.intercept_methods(intercept):
            module.apply(variables, *arguments, method=method, **keywords)

    def calls():
        for batch in batches:
            arguments = batch if isinstance(batch, tuple) else (batch,)
            _check_call(module, method, arguments, keywords)
            yield {"arguments": arguments}

    return collect_recorded(forward, variables, calls())


def _convolution_of(layer: nn.Conv) -> Convolution:
    size, padding = layer.kernel_size, layer.padding
    if not isinstance(padding, str | int):
        padding = tuple(one if isinstance(one, int) else tuple(one) for one in padding)
    strides, dilation = (
        1 if one is None else one if isinstance(one, int) else tuple(one)
        for one in (layer.strides, layer.kernel_dilation)
    )
    return Convolution(
        (size,) if isinstance(size, int) else tuple(size), strides, padding, dilation, layer.feature_group_count
    )


def _check_call(module: nn.Module, method: Any, arguments: tuple, keywords: Mapping[str, Any]) -> None:
    for one in arguments:
        if isinstance(one, bool | str):
            raise InputError(f"a batch must hold arrays, not {one!r}: give it by keyword, such as train=False")
    name = "__call__" if method is None else method
    called = getattr(module, name, None) if isinstance(name, str) else name
    if not callable(called):
        raise InputError(f"{type(module).__name__} has no method {name!r}")
    mine = {name: value for name, value in keywords.items() if name not in APPLY_KEYWORDS}
    try:
        inspect.signature(called).bind(*([] if inspect.ismethod(called) else [module]), *arguments, **mine)
    except TypeError as error:
        raise InputError(
            f"{type(module).__name__} cannot be called with such a batch: {error}; options such as train=False "
            "are given by keyword"
        ) from None


@jax.jit
def _both(moments: list[Moments], others: list[Moments]) -> list[Moments]:
    both = []
    for one, other in zip(moments, others, strict=True):
        count = one.count + other.count
        share = other.count / jnp.maximum(count, 1e-12)
        gram, mean, _, change = jax.tree.map(lambda old, new, share=share: old + share * (new - old), one, other)
        both.append(Moments(gram, mean, count, change))
    return both
