"""The masked multilayer perceptron: a Flax Linen module, and its weights as plain arrays."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from sa_jax import checks
from sa_jax.networks import layer_order, masks
from sa_jax.networks.trees import flat_params
from sa_jax.types import InputError, PyTree

# gelu is the tanh approximation, as in Flax.
ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "gelu": jax.nn.gelu}
INITIALIZERS = {
    name: getattr(nn.initializers, name)()
    for name in ("he_normal", "he_uniform", "glorot_normal", "glorot_uniform", "lecun_normal", "orthogonal")
}


def check_network(network: Any) -> None:
    """Raises `InputError` if a value is not a `Network`."""
    if not isinstance(network, Network):
        raise InputError(f"network must be a Network, such as network_of(params)[1], not {type(network).__name__}")


def check_activation(activation: str) -> None:
    """Raises `InputError` if an activation is not one of `ACTIVATIONS`."""
    checks.choice("activation", activation, ACTIVATIONS)


class Network(NamedTuple):
    """A multilayer perceptron's weights, in network order.

    Attributes:
      kernels: one float32 `[inputs, outputs]` per layer.
      biases: one float32 `[outputs]` per layer, or None for a layer without a bias. Biases are never masked.
    """

    kernels: tuple[jax.Array, ...]  # float32 [inputs, outputs]
    biases: tuple[jax.Array | None, ...]  # float32 [outputs]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Shape `(inputs, outputs)` of each kernel."""
        return [(kernel.shape[0], kernel.shape[1]) for kernel in self.kernels]

    @property
    def sizes(self) -> list[int]:
        """Number of inputs, then the number of units of each layer."""
        return [self.kernels[0].shape[0], *(kernel.shape[1] for kernel in self.kernels)]

    @property
    def total(self) -> int:
        """Number of branches."""
        return sum(inputs * outputs for inputs, outputs in self.shapes)


class MaskedDense(nn.Module):
    """A dense layer, masked by the variable `kernel` of the collection `masks`, if there is one.

    The mask is bool `[inputs, outputs]`.

    Attributes:
      features: number of outputs.
      use_bias: whether to add a bias, which is never masked.
      kernel_init: initializer of the kernel. Biases start at zero.
    """

    features: int
    use_bias: bool = True
    kernel_init: Callable[..., jax.Array] = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float `[..., inputs]` to `[..., features]`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        if self.has_variable("masks", "kernel"):
            kernel = jnp.where(self.get_variable("masks", "kernel"), kernel, 0)
        x = x @ kernel
        return _with_bias(x, self.param("bias", nn.initializers.zeros, (self.features,))) if self.use_bias else x


class MLP(nn.Module):
    """A multilayer perceptron, masked if a collection `masks` is given beside `params`.

    Attributes:
      features: number of units of each layer; the last is the number of classes.
      activation: activation between layers, 'relu', 'tanh' or 'gelu'.
      use_bias: whether layers have biases.
      initializer: initializer of the kernels, one of `INITIALIZERS`.

    >>> model = MLP([3, 2])
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
    >>> masks = {"Dense_0": {"kernel": jnp.zeros((4, 3), bool)}}
    >>> model.apply({**variables, "masks": masks}, jnp.ones((1, 4)))
    Array([[0., 0.]], dtype=float32)
    """

    features: Sequence[int]
    activation: str = "relu"
    use_bias: bool = True
    initializer: str = "he_normal"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps inputs, float `[samples, inputs]`, to logits, `[samples, classes]`."""
        for layer, features in enumerate(self.features):
            x = ACTIVATIONS[self.activation](x) if layer else x
            kernel_init = INITIALIZERS[self.initializer]
            x = MaskedDense(features, self.use_bias, kernel_init, name=f"Dense_{layer}")(x)
        return x


def _with_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    return x + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def forward(network: Network, x: jax.Array, activation: str = "relu") -> jax.Array:
    """Runs a network on inputs, float `[samples, inputs]`, and returns logits, `[samples, classes]`."""
    return layer_inputs(network, x, activation)[-1]


def layer_inputs(network: Network, x: jax.Array, activation: str = "relu") -> list[jax.Array]:
    """Returns the inputs of each layer, float `[samples, inputs of the layer]`, and at the end the logits."""
    entering = [x]
    for layer, (kernel, bias) in enumerate(zip(network.kernels, network.biases, strict=True)):
        x = x @ kernel if bias is None else _with_bias(x @ kernel, bias)
        if layer < len(network.kernels) - 1:
            x = ACTIVATIONS[activation](x)
        entering.append(x)
    return entering


def masked(network: Network, mask: jax.Array) -> Network:
    """Returns a network whose pruned branches are zero; `mask` is flat, bool `[total]`."""
    kernel_masks = masks.unflatten(mask, network.shapes)
    kernels = [jnp.where(kept, w, 0) for kept, w in zip(kernel_masks, network.kernels, strict=True)]
    return network._replace(kernels=tuple(kernels))


def apply(params: PyTree, kernel_masks: PyTree, x: jax.Array, activation: str = "relu") -> jax.Array:
    """Runs a multilayer perceptron with masked kernels.

    Args:
      params: its Flax params, see `network_of`.
      kernel_masks: one mask per kernel, bool `[inputs, outputs]`, nested like `params`, as `prune` returns them.
      x: inputs, float `[samples, inputs]`.
      activation: 'relu', 'tanh' or 'gelu'.

    Returns:
      Logits, float `[samples, classes]`.

    Raises:
      InputError: params that are not a multilayer perceptron, masks that do not fit them, or an unknown
        activation.
    """
    check_activation(activation)
    names, network = network_of(params)
    expected = flat_params(mask_tree(names, network.kernels))
    given = flat_params(kernel_masks)
    if {path: jnp.shape(leaf) for path, leaf in given.items()} != {p: leaf.shape for p, leaf in expected.items()}:
        raise InputError("the masks do not fit the parameters: there must be one mask per kernel, with its shape")
    return forward(masked(network, flat_mask(kernel_masks)), x, activation)


def saliency(network: Network, x: jax.Array, activation: str = "relu") -> jax.Array:
    """Wanda saliency `|w| * norm(input)` of each branch, float32 `[total]` (Sun et al. 2024, equation 1).

    One forward pass of the dense network on `x`, float `[samples, inputs]`, gives the inputs of all layers.
    """
    entering = layer_inputs(network, x, activation)
    norms = [jnp.sqrt((inputs**2).mean(0)) for inputs in entering[:-1]]
    scores = [jnp.abs(kernel) * norm[:, None] for kernel, norm in zip(network.kernels, norms, strict=True)]
    return masks.flatten(scores)


def network_of(params: PyTree) -> tuple[list[str], Network]:
    """Converts the Flax params of a multilayer perceptron to a `Network`.

    Layers are ordered by the numbers in their names (`Dense_2` before `Dense_10`). Other names are allowed if the
    shapes fit in one order only.

    Args:
      params: nested mappings whose leaves are all called `kernel`, float `[inputs, outputs]`, or `bias`,
        float `[outputs]`; with or without the outer level `params`.

    Returns:
      The names of the layers, as paths joined by '/', and the network.

    Raises:
      InputError: a leaf with another name or shape; no kernel; or layers that do not fit each other in the order
        of their names, or fit in several orders.
    """
    if isinstance(params, Mapping) and "params" in params:
        params = {"params": params["params"]}  # without other collections of variables
    leaves = flat_params(params)
    layers: dict[str, dict[str, jax.Array]] = {}
    for path, leaf in leaves.items():
        layer, _, kind = path.rpartition("/")
        rank = {"kernel": 2, "bias": 1}.get(kind)
        if rank is None or jnp.ndim(leaf) != rank:
            raise InputError(
                f"parameter {path!r} of shape {list(jnp.shape(leaf))} does not belong to a multilayer perceptron: "
                "every parameter must be a 'kernel' [inputs, outputs] or a 'bias' [outputs]"
            )
        layers.setdefault(layer, {})[kind] = jnp.asarray(leaf, jnp.float32)
    if not layers:
        raise InputError("the parameters hold no kernel")
    lengths = {}
    for name, arrays in layers.items():
        if "kernel" not in arrays:
            raise InputError(f"layer {name!r} has a bias and no kernel")
        if "bias" in arrays:
            lengths[name] = arrays["bias"].shape[0]
    shapes = {name: (arrays["kernel"].shape[0], arrays["kernel"].shape[1]) for name, arrays in layers.items()}
    fitting = layer_order.orders(shapes)
    if not fitting or any(length != shapes[name][1] for name, length in lengths.items()):
        raise InputError(layer_order.misfit(shapes, lengths))
    if len(fitting) > 1:
        one, other = (", ".join(order) for order in fitting)
        raise InputError(
            f"the layers fit each other in two orders, [{one}] and [{other}]: number them in network order"
        )
    names = fitting[0]
    kernels = tuple(layers[name]["kernel"] for name in names)
    return names, Network(kernels, tuple(layers[name].get("bias") for name in names))


def mask_tree(names: Sequence[str], kernel_masks: Sequence[jax.Array]) -> PyTree:
    """Nests one mask per kernel like the kernels in the params that were given to `network_of`.

    Args:
      names: names of the layers, from `network_of`.
      kernel_masks: one mask per layer, bool `[inputs, outputs]`.
    """
    return flax.traverse_util.unflatten_dict(
        {(*filter(None, name.split("/")), "kernel"): mask for name, mask in zip(names, kernel_masks, strict=True)}
    )


def with_weights(params: PyTree, names: Sequence[str], network: Network) -> PyTree:
    """Returns a network's arrays as Flax params; the inverse of `network_of`."""
    leaves: dict[tuple[str, ...], jax.Array] = {}
    for name, kernel, bias in zip(names, network.kernels, network.biases, strict=True):
        path = tuple(filter(None, name.split("/")))
        leaves[*path, "kernel"] = kernel
        if bias is not None:
            leaves[*path, "bias"] = bias
    return flax.traverse_util.unflatten_dict(leaves)


def weight_arrays(names: Sequence[str], network: Network) -> dict[str, np.ndarray]:
    """Returns a network's arrays by names that `sa_jax.files.load` reads: LAYER/kernel and LAYER/bias.

    Args:
      names: names of the layers, in network order.
      network: kernels float32 `[inputs, outputs]`, biases float32 `[outputs]` or None.
    """
    arrays = {f"{name}/kernel": np.asarray(w) for name, w in zip(names, network.kernels, strict=True)}
    biases = zip(names, network.biases, strict=True)
    return arrays | {f"{name}/bias": np.asarray(bias) for name, bias in biases if bias is not None}


def flat_mask(tree: PyTree) -> jax.Array:
    """Joins a tree of masks, as `mask_tree` returns it, to a flat mask, bool `[total]`."""
    kernel_masks = {path.rpartition("/")[0]: leaf for path, leaf in flat_params(tree).items()}
    order = layer_order.orders({name: (len(mask), len(mask[0])) for name, mask in kernel_masks.items()})[0]
    return masks.flatten([kernel_masks[name] for name in order])
