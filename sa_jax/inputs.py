"""What a linear layer is pruned by: the second moments of its inputs, streamed, never the inputs themselves."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sa_jax.types import InputError, PyTree


class Moments(NamedTuple):
    """Of a layer's inputs, so far.

    Attributes:
      gram: mean of `x x'`, float32 `[inputs, inputs]`.
      mean: of `x`, float32 `[inputs]`.
      count: inputs seen, float32 `[]`.
    """

    gram: jax.Array
    mean: jax.Array
    count: jax.Array


def no_inputs(inputs: int) -> Moments:
    """The moments before anything was seen, of a layer with so many inputs."""
    return Moments(jnp.zeros((inputs, inputs)), jnp.zeros(inputs), jnp.zeros(()))


def with_inputs(moments: Moments, x: jax.Array, weight: jax.Array | None = None) -> Moments:
    """The moments once more inputs are seen; pure, in memory of one Gram matrix.

    Args:
      moments: so far.
      x: inputs, float `[..., inputs]`.
      weight: how often each counts, 0 for padding, float `[...]`; None for once.

    >>> moments = with_inputs(no_inputs(2), jnp.array([[1.0, 0.0], [3.0, 2.0]]))
    >>> moments.gram.tolist(), moments.mean.tolist()
    ([[5.0, 3.0], [3.0, 2.0]], [2.0, 1.0])
    """
    x = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    weight = jnp.ones(len(x)) if weight is None else jnp.asarray(weight, jnp.float32).reshape(-1)
    count = moments.count + weight.sum()
    before, new = moments.count / jnp.maximum(count, 1e-12), 1 / jnp.maximum(count, 1e-12)
    gram = before * moments.gram + new * jnp.dot(x.T * weight, x, precision="highest")
    return Moments(gram, before * moments.mean + new * (weight @ x), count)


def calibrate(
    module: nn.Module, variables: PyTree, batches: Iterable[Any], method: Callable | str | None = None
) -> dict[str, Moments]:
    """Collects the moments of the inputs of all linear layers of a Flax Linen model.

    Memory is that of one batch and the Gram matrices, whatever the number of batches. A layer that is called
    several times sees all its inputs.

    Args:
      module: the model; layers with a parameter `kernel [inputs, outputs]`, such as `nn.Dense`, are found wherever
        they are.
      variables: as `module.init` gives them.
      batches: positional arguments of each call, a tuple, or one array. Equal shapes compile once.
      method: of the module, if not `__call__`.

    Returns:
      The moments by the layer's path, such as 'encoder/Dense_0', in the order of the first call.

    Raises:
      InputError: no batch, or no linear layer.

    >>> from sa_jax.models import MLP
    >>> x = jax.random.normal(jax.random.key(0), (64, 8))
    >>> model = MLP([16, 2])
    >>> moments = calibrate(model, model.init(jax.random.key(1), x), [x[:32], x[32:]])
    >>> {name: moment.gram.shape for name, moment in moments.items()}
    {'Dense_0': (8, 8), 'Dense_1': (16, 16)}
    """

    @jax.jit
    def see(moments: Mapping[str, Moments], variables: PyTree, arguments: tuple) -> dict[str, Moments]:
        seen = dict(moments)

        def intercept(call, args, kwargs, context):
            layer = context.module
            if context.method_name == "__call__" and layer.has_variable("params", "kernel") and args:
                name, x, kernel = "/".join(layer.path), args[0], layer.get_variable("params", "kernel")
                if kernel.ndim == 2 and jnp.shape(x)[-1:] == kernel.shape[:1]:
                    order.setdefault(name)
                    seen[name] = with_inputs(seen.get(name, no_inputs(x.shape[-1])), x)
            return call(*args, **kwargs)

        with nn.intercept_methods(intercept):
            module.apply(variables, *arguments, method=method)
        return seen

    moments: dict[str, Moments] = {}
    order: dict[str, None] = {}  # jit sorts what it returns
    empty = True
    for batch in batches:
        empty = False
        arguments = batch if isinstance(batch, tuple) else (batch,)
        if not moments:
            shapes = jax.eval_shape(see, {}, variables, arguments)
            moments = {name: no_inputs(moment.mean.shape[0]) for name, moment in shapes.items()}
        moments = see(moments, variables, arguments)
    if empty:
        raise InputError("calibrate needs at least one batch")
    if not moments:
        raise InputError("the model has no linear layer, such as nn.Dense: nothing to calibrate")
    return {name: moments[name] for name in order}
