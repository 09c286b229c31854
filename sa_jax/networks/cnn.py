"""The convolutional network: its architecture as a hashable value, a Flax Linen module, and its weights as arrays.

Convolutions come first, each with its activation and its pooling. Then the values are flattened and dense layers
follow. As a matrix, a kernel `[height, width, inputs, outputs]` has one row per tap and input channel, and one
column per output channel. A flat mask joins these matrices, layer by layer and row by row, as the one of a
multilayer perceptron does (`sa_jax.networks.masks`). So whatever works on kernels of dense layers works on these.

The functions for landscapes have the samples last, `[channels, height, width, samples]`. A convolution is then a
product of the kernel's matrix with the shifted inputs (Vasudevan, Anderson & Gregg 2017), and its innermost loop
runs over samples, which are contiguous.
"""

import dataclasses
import itertools
import math
from functools import partial, reduce
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sa_jax import checks
from sa_jax.networks import masks
from sa_jax.networks.mlp import ACTIVATIONS, INITIALIZERS
from sa_jax.networks.trees import flat_params
from sa_jax.types import InputError, PyTree

# Without an activation, as after the last convolution of an inverted residual block.
CHANNEL_ACTIVATIONS = ACTIVATIONS | {"none": lambda values: values}
POOLS = ("max", "mean")
PADDINGS = ("SAME", "VALID")
# Flax's own value.
EPSILON = 1e-5


class Pool(NamedTuple):
    """Pooling of each channel, without padding.

    Attributes:
      kind: 'max' or 'mean'.
      window: height and width of the window.
      stride: vertical and horizontal distance of the windows.
    """

    kind: str
    window: tuple[int, int] = (2, 2)
    stride: tuple[int, int] = (2, 2)


class Convolution(NamedTuple):
    """A convolution, its activation and its pooling.

    Attributes:
      outputs: number of output channels.
      window: height and width of the kernel.
      stride: vertical and horizontal stride.
      padding: 'SAME' or 'VALID'.
      groups: number of groups of channels; as many as there are input channels in a depthwise convolution.
      activation: 'relu', 'tanh', 'gelu' or 'none'.
      pool: what follows the activation, or None.
    """

    outputs: int
    window: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: str = "VALID"
    groups: int = 1
    activation: str = "relu"
    pool: Pool | None = None


class Architecture(NamedTuple):
    """All of a convolutional network but its weights; hashable.

    Attributes:
      image: height, width and channels of the inputs.
      convolutions: at least one.
      dense: number of units of each dense layer; the last is the number of classes.
      activation: activation between the dense layers, 'relu', 'tanh' or 'gelu'.
    """

    image: tuple[int, int, int]
    convolutions: tuple[Convolution, ...]
    dense: tuple[int, ...]
    activation: str = "relu"


# LeCun, Bottou, Bengio & Haffner 1998, in the form of today: 61,706 parameters, all maps of the first pooling feed
# all of the second convolution, and rectifiers with maximum pooling.
LENET5 = Architecture(
    (28, 28, 1),
    (Convolution(6, (5, 5), padding="SAME", pool=Pool("max")), Convolution(16, (5, 5), pool=Pool("max"))),
    (120, 84, 10),
)


def depthwise_separable(inputs: int, outputs: int, stride: int = 1) -> tuple[Convolution, Convolution]:
    """Returns a depthwise 3 x 3 convolution and a pointwise one (Howard et al. 2017, MobileNets, section 3.1).

    >>> [layer.groups for layer in depthwise_separable(16, 32)]
    [16, 1]
    """
    depthwise = Convolution(inputs, (3, 3), (stride, stride), "SAME", groups=inputs)
    return depthwise, Convolution(outputs, (1, 1))


DSCNN = Architecture(
    (28, 28, 1),
    (
        Convolution(16, (3, 3), (2, 2), "SAME"),
        *depthwise_separable(16, 32),
        *depthwise_separable(32, 64, 2),
        depthwise_separable(64, 64)[0],
        Convolution(64, (1, 1), pool=Pool("mean", (7, 7), (7, 7))),
    ),
    (10,),
)


class Stage(NamedTuple):
    """A convolution and the sizes that follow from the layers before it.

    Attributes:
      layer: the convolution.
      inputs: height, width and channels of its inputs.
      outputs: those of its outputs.
      pooled: those after the pooling.
      padding: rows before and after, then columns before and after.
    """

    layer: Convolution
    inputs: tuple[int, int, int]
    outputs: tuple[int, int, int]
    pooled: tuple[int, int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]

    @property
    def kernel_shape(self) -> tuple[int, int, int, int]:
        """Height, width, inputs per group and outputs of the kernel."""
        return (*self.layer.window, self.inputs[2] // self.layer.groups, self.layer.outputs)

    @property
    def depthwise(self) -> bool:
        """Whether each output channel has an input channel of its own."""
        return self.layer.groups == self.inputs[2] == self.layer.outputs


def stages_of(architecture: Architecture) -> list[Stage]:
    """Returns the convolutions of a network with their sizes.

    Raises:
      InputError: the layers do not fit each other, or are not known.
    """
    if not isinstance(architecture, Architecture):
        raise InputError(
            f"architecture must be an Architecture, such as LENET5, not {type(architecture).__name__}"
        )
    checks.choice("activation", architecture.activation, ACTIVATIONS)
    if not architecture.convolutions or not architecture.dense:
        raise InputError("a convolutional network needs a convolution and a dense layer at least")
    stages, entering = [], architecture.image
    for number, layer in enumerate(architecture.convolutions):
        checks.choice("padding", layer.padding, PADDINGS)
        checks.choice("activation", layer.activation, CHANNEL_ACTIVATIONS)
        height, width, channels = entering
        if channels % layer.groups or layer.outputs % layer.groups:
            raise InputError(
                f"convolution {number} has {layer.groups} groups, which do not divide its {channels} inputs and "
                f"{layer.outputs} outputs"
            )
        rows, columns = jax.lax.padtype_to_pads((height, width), layer.window, layer.stride, layer.padding)
        padded = height + sum(rows), width + sum(columns)
        outputs = (*_positions(padded, layer.window, layer.stride), layer.outputs)
        pooled = outputs
        if layer.pool is not None:
            checks.choice("pool", layer.pool.kind, POOLS)
            pooled = (*_positions(outputs[:2], layer.pool.window, layer.pool.stride), layer.outputs)
        if min(*outputs[:2], *pooled[:2]) < 1:
            raise InputError(f"the window of convolution {number} or of its pooling is larger than its inputs")
        padding = (int(rows[0]), int(rows[1])), (int(columns[0]), int(columns[1]))
        stages.append(Stage(layer, entering, outputs, pooled, padding))
        entering = pooled
    return stages


def _positions(size, window, stride) -> tuple[int, int]:
    height, width = ((length - over) // step + 1 for length, over, step in zip(size, window, stride, strict=True))
    return height, width


def kernel_shapes(architecture: Architecture) -> list[tuple[int, ...]]:
    """Returns the shape of each kernel, `[height, width, inputs / groups, outputs]` or `[inputs, outputs]`.

    >>> kernel_shapes(LENET5)
    [(5, 5, 1, 6), (5, 5, 6, 16), (400, 120), (120, 84), (84, 10)]
    """
    stages = stages_of(architecture)
    widths = math.prod(stages[-1].pooled), *architecture.dense
    return [*(stage.kernel_shape for stage in stages), *itertools.pairwise(widths)]


@partial(jax.tree_util.register_dataclass, data_fields=["kernels", "biases"], meta_fields=["architecture"])
@dataclasses.dataclass(frozen=True, eq=False)
class ConvNetwork:
    """A convolutional network's weights, in network order; a pytree whose architecture is static.

    Attributes:
      architecture: its layers.
      kernels: float32 `[height, width, inputs / groups, outputs]` per convolution, `[inputs, outputs]` per dense
        layer. The inputs of the first dense layer are in the order row, column, channel, as Flax flattens them.
      biases: float32 `[outputs]` per layer, or None for a layer without a bias. Biases are never masked.
    """

    architecture: Architecture
    kernels: tuple[jax.Array, ...]  # float32 [..., outputs]
    biases: tuple[jax.Array | None, ...]  # float32 [outputs]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Shape `(height * width * inputs / groups, outputs)` of each kernel as a matrix."""
        return [(math.prod(kernel.shape[:-1]), kernel.shape[-1]) for kernel in self.kernels]

    @property
    def total(self) -> int:
        """Number of branches."""
        return sum(math.prod(shape) for shape in self.shapes)


def check_conv_network(network: Any) -> None:
    """Raises `InputError` if a value is not a `ConvNetwork`, or its arrays do not fit its architecture."""
    if not isinstance(network, ConvNetwork):
        raise InputError(f"network must be a ConvNetwork, not {type(network).__name__}")
    expected, found = kernel_shapes(network.architecture), [kernel.shape for kernel in network.kernels]
    biases = [None if bias is None else bias.shape for bias in network.biases]
    if found != expected or any(
        bias not in (None, shape[-1:]) for bias, shape in zip(biases, expected, strict=True)
    ):
        raise InputError(f"the architecture needs kernels of the shapes {expected}, not {found}, and their biases")


class CNN(nn.Module):
    """A convolutional network.

    Attributes:
      architecture: its layers.
      use_bias: whether layers have biases.
      initializer: initializer of the kernels, one of `INITIALIZERS`.

    >>> params = CNN(LENET5).init(jax.random.key(0), jnp.ones((1, 784)))["params"]
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    61706
    """

    architecture: Architecture
    use_bias: bool = True
    initializer: str = "he_normal"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images, float `[samples, height, width, channels]` or flat, to logits, `[samples, classes]`."""
        kernel_init = INITIALIZERS[self.initializer]
        x = x.reshape(len(x), *self.architecture.image)
        for number, stage in enumerate(stages_of(self.architecture)):
            layer = stage.layer
            x = nn.Conv(
                layer.outputs,
                layer.window,
                layer.stride,
                stage.padding,
                feature_group_count=layer.groups,
                use_bias=self.use_bias,
                kernel_init=kernel_init,
                name=f"Conv_{number}",
            )(x)
            x = CHANNEL_ACTIVATIONS[layer.activation](x)
            if layer.pool is not None:
                pool = nn.max_pool if layer.pool.kind == "max" else nn.avg_pool
                x = pool(x, layer.pool.window, layer.pool.stride)
        x = x.reshape(len(x), -1)
        for number, features in enumerate(self.architecture.dense):
            x = ACTIVATIONS[self.architecture.activation](x) if number else x
            x = nn.Dense(features, self.use_bias, kernel_init=kernel_init, name=f"Dense_{number}")(x)
        return x


def network_of(params: PyTree, architecture: Architecture) -> ConvNetwork:
    """Converts the params of `CNN(architecture)` to a `ConvNetwork`; with or without the outer level `params`.

    Raises:
      InputError: the params do not fit the architecture.
    """
    leaves = {path.removeprefix("params/"): leaf for path, leaf in flat_params(params).items()}
    names = layer_names(architecture)
    missing = [name for name in names if f"{name}/kernel" not in leaves]
    unknown = sorted(set(leaves) - {f"{name}/{kind}" for name in names for kind in ("kernel", "bias")})
    if missing or unknown:
        raise InputError(f"the params do not fit the architecture: missing {missing}, unknown {unknown}")
    arrays = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in leaves.items()}
    kernels = tuple(arrays[f"{name}/kernel"] for name in names)
    network = ConvNetwork(architecture, kernels, tuple(arrays.get(f"{name}/bias") for name in names))
    check_conv_network(network)
    return network


def params_of(network: ConvNetwork) -> PyTree:
    """Returns a network's arrays as params of `CNN`, without the outer level; the inverse of `network_of`."""
    params: dict[str, dict[str, jax.Array]] = {}
    for name, kernel, bias in zip(layer_names(network.architecture), network.kernels, network.biases, strict=True):
        params[name] = {"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias}
    return params


def layer_names(architecture: Architecture) -> list[str]:
    """Returns the names of the layers in the params of `CNN`, in network order.

    >>> layer_names(LENET5)
    ['Conv_0', 'Conv_1', 'Dense_0', 'Dense_1', 'Dense_2']
    """
    counts = {"Conv": len(architecture.convolutions), "Dense": len(architecture.dense)}
    return [f"{kind}_{number}" for kind, count in counts.items() for number in range(count)]


def forward(network: ConvNetwork, x: jax.Array) -> jax.Array:
    """Runs a network on images, float `[samples, height, width, channels]` or flat: logits, `[samples, classes]`.

    Biases of None count as zeros.
    """
    biases = [
        jnp.zeros(kernel.shape[-1]) if bias is None else bias
        for kernel, bias in zip(network.kernels, network.biases, strict=True)
    ]
    params = params_of(dataclasses.replace(network, biases=tuple(biases)))
    logits = CNN(network.architecture).apply({"params": params}, x)
    assert isinstance(logits, jax.Array)
    return logits


def kernel_masks(network: ConvNetwork, mask: jax.Array) -> list[jax.Array]:
    """Splits a flat mask, bool `[total]`, into one mask per kernel, of its shape."""
    matrices = masks.unflatten(mask, network.shapes)
    return [kept.reshape(kernel.shape) for kept, kernel in zip(matrices, network.kernels, strict=True)]


def masked(network: ConvNetwork, mask: jax.Array) -> ConvNetwork:
    """Returns a network whose pruned branches are zero; `mask` is flat, bool `[total]`."""
    pairs = zip(kernel_masks(network, mask), network.kernels, strict=True)
    return dataclasses.replace(network, kernels=tuple(jnp.where(kept, kernel, 0) for kept, kernel in pairs))


def fold_batch_norm(
    kernel: jax.Array,
    bias: jax.Array | None,
    mean: jax.Array,
    variance: jax.Array,
    scale: jax.Array | None = None,
    offset: jax.Array | None = None,
    epsilon: float = EPSILON,
) -> tuple[jax.Array, jax.Array]:
    """Returns the kernel and bias of a convolution that does what it and the batch norm after it do.

    Args:
      kernel: float `[height, width, inputs / groups, outputs]`.
      bias: float `[outputs]`, or None.
      mean: running mean of each channel, float `[outputs]`.
      variance: running variance, float `[outputs]`.
      scale: factor of the batch norm, float `[outputs]`, or None for 1.
      offset: what the batch norm adds, float `[outputs]`, or None for 0.
      epsilon: what the batch norm adds to the variance.
    """
    factor = jax.lax.rsqrt(variance + epsilon) * (1 if scale is None else scale)
    shifted = (0 if bias is None else bias) - mean
    return kernel * factor, shifted * factor + (0 if offset is None else offset)


def samples_last(x: jax.Array | np.ndarray, architecture: Architecture) -> jax.Array:
    """Returns images as float32 `[channels, height, width, samples]`.

    Args:
      x: `[samples, height, width, channels]`, or flat, `[samples, height * width * channels]`.
      architecture: the layers of the network.

    Raises:
      InputError: the images have another shape.
    """
    values = jnp.asarray(x, jnp.float32)
    if values.ndim < 2 or values.shape[1:] not in (architecture.image, (math.prod(architecture.image),)):
        raise InputError(
            f"images must have the shape [samples, {', '.join(map(str, architecture.image))}], or flat, "
            f"not {list(values.shape)}"
        )
    return values.reshape(len(values), *architecture.image).transpose(3, 1, 2, 0)


def patches(stage: Stage, values: jax.Array) -> jax.Array:
    """Returns the inputs that meet each row of a kernel's matrix, `[taps * channels, positions * samples]`.

    Args:
      stage: the convolution.
      values: some channels of its inputs, float32 `[channels, height, width, samples]`.
    """
    padded = jnp.pad(values, ((0, 0), *stage.padding, (0, 0)))
    shifted = [strided(stage, padded, i, j) for i, j in np.ndindex(*stage.layer.window)]
    return jnp.stack(shifted).reshape(len(shifted) * len(values), -1)


def strided(stage: Stage, padded: jax.Array, row: jax.Array | int, column: jax.Array | int) -> jax.Array:
    """Returns the inputs that meet one tap of the kernel, `[channels, height, width, samples]` of the outputs.

    Args:
      stage: the convolution.
      padded: padded channels of its inputs, float32 `[channels, height, width, samples]`.
      row: row of the tap, int32 `[]`.
      column: column of the tap, int32 `[]`.
    """
    (height, width, _), (down, right) = stage.outputs, stage.layer.stride
    sizes = len(padded), (height - 1) * down + 1, (width - 1) * right + 1, padded.shape[3]
    starts = [jnp.asarray(start, jnp.int32) for start in (0, row, column, 0)]
    return jax.lax.dynamic_slice(padded, starts, sizes)[:, ::down, ::right]


def convolve(stage: Stage, matrix: jax.Array, bias: jax.Array | None, values: jax.Array) -> jax.Array:
    """Returns the outputs of a convolution, float32 `[outputs, height, width, samples]`.

    Args:
      stage: the convolution.
      matrix: its kernel as a matrix, float32 `[taps * inputs / groups, outputs]`.
      bias: float32 `[outputs]`, or None.
      values: its inputs, float32 `[channels, height, width, samples]`.
    """
    height, width, outputs = stage.outputs
    entering, groups = patches(stage, values), stage.layer.groups
    if groups == 1:
        # As in `loops.dense`, a product with the transposed kernel is faster on a CPU.
        value = jax.lax.optimization_barrier(matrix.T) @ entering
    else:
        taps = math.prod(stage.layer.window)
        kernel = matrix.reshape(taps, -1, groups, outputs // groups)
        value = jnp.einsum("tigo,tgin->gon", kernel, entering.reshape(taps, groups, -1, entering.shape[1]))
    value = value.reshape(outputs, height, width, -1)
    return value if bias is None else value + bias[:, None, None, None]


def activate(stage: Stage, outputs: jax.Array) -> jax.Array:
    """Applies the activation and the pooling that follow a convolution to some of its channels.

    Args:
      stage: the convolution.
      outputs: float32 `[channels, height, width, samples]`.

    Returns:
      Float32 `[channels, pooled height, pooled width, samples]`.
    """
    values, pool = CHANNEL_ACTIVATIONS[stage.layer.activation](outputs), stage.layer.pool
    if pool is None:
        return values
    (height, width, _), (down, right) = stage.pooled, pool.stride
    # Slices in place of a reduction over windows, which takes as long as the convolution on a CPU.
    slices = [
        values[:, i : i + (height - 1) * down + 1 : down, j : j + (width - 1) * right + 1 : right]
        for i, j in np.ndindex(*pool.window)
    ]
    return reduce(jnp.maximum, slices) if pool.kind == "max" else reduce(jnp.add, slices) / len(slices)


def flattened(values: jax.Array) -> jax.Array:
    """Returns the inputs of the first dense layer, `[features, samples]`.

    Args:
      values: outputs of the last convolution after pooling, float32 `[channels, height, width, samples]`.
    """
    return jnp.moveaxis(values, 0, 2).reshape(-1, values.shape[-1])
