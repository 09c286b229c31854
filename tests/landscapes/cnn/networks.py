"""Small convolutional networks, their samples, and their energy written again from the definition."""

import jax.numpy as jnp
import numpy as np

from sa_jax.networks import cnn
from sa_jax.networks.cnn import Architecture, Convolution, Pool

ARCHITECTURES = {
    # Windows of the pooling that overlap, and that leave a row over; three dense layers.
    "pooled": Architecture(
        (5, 6, 2),
        (Convolution(3, (3, 2), padding="SAME", pool=Pool("max", (2, 3), (2, 1))), Convolution(2, (2, 2), (1, 2))),
        (4, 3, 3),
    ),
    # Three layers that all change when the first does; one dense layer.
    "strided": Architecture(
        (7, 5, 1),
        (
            Convolution(3, (3, 3), (2, 1), "SAME", activation="none"),
            Convolution(2, (2, 2), activation="tanh"),
            Convolution(3, (2, 3), (1, 2), "SAME", pool=Pool("mean", (2, 2), (1, 1))),
        ),
        (3,),
        "tanh",
    ),
    "separable": Architecture(
        (5, 4, 2),
        (
            Convolution(3, (1, 1)),
            *cnn.depthwise_separable(3, 4, 2),
            Convolution(4, (2, 2), padding="SAME", groups=4, activation="gelu"),
        ),
        (3, 2),
    ),
    # Two groups; a hidden layer whose changes need a scratch.
    "groups": Architecture(
        (4, 4, 2), (Convolution(4, (2, 2), groups=2), Convolution(4, (2, 2), groups=2)), (4, 3, 3, 2), "gelu"
    ),
}


def make_network(name, use_bias=True, seed=4, ties=False):
    """With ties, weights and biases are 1 or -1, so that many values that are pooled are equal."""
    numbers = np.random.default_rng(seed)

    def draw(shape):
        values = numbers.normal(0, 1.5 / np.sqrt(np.prod(shape[:-1]) or 1), shape)
        return jnp.asarray(np.sign(values) if ties else values, jnp.float32)

    shapes = cnn.kernel_shapes(ARCHITECTURES[name])
    biases = tuple(draw(shape[-1:]) if use_bias else None for shape in shapes)
    return cnn.ConvNetwork(ARCHITECTURES[name], tuple(map(draw, shapes)), biases)


def make_samples(network, samples=7, seed=1, ties=False):
    """Inputs `[samples, height, width, channels]` and labels; with ties, the inputs are -1, 0 or 1."""
    numbers = np.random.default_rng(seed)
    x = numbers.normal(size=(samples, *network.architecture.image))
    x = np.sign(np.round(x)) if ties else x
    classes = network.architecture.dense[-1]
    return jnp.asarray(x, jnp.float32), jnp.asarray(numbers.integers(classes, size=samples), jnp.int32)


ACTIVATIONS = {
    "relu": lambda z: np.maximum(z, 0),
    "tanh": np.tanh,
    "gelu": lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
    "none": lambda z: z,
}


def convolved(x, kernel, bias, layer):
    """A convolution of `[samples, height, width, channels]` by its definition, one output at a time."""
    (rows, columns), (down, right), groups = layer.window, layer.stride, layer.groups
    if layer.padding == "SAME":
        for axis, (window, stride) in enumerate(zip(layer.window, layer.stride, strict=True), 1):
            missing = max((-(-x.shape[axis] // stride) - 1) * stride + window - x.shape[axis], 0)
            pads = [(0, 0)] * 4
            pads[axis] = (missing // 2, missing - missing // 2)
            x = np.pad(x, pads)
    height, width = (x.shape[1] - rows) // down + 1, (x.shape[2] - columns) // right + 1
    value = np.zeros((len(x), height, width, layer.outputs))
    inputs, outputs = kernel.shape[2], layer.outputs // groups
    for i, j, channel in np.ndindex(height, width, layer.outputs):
        first = channel // outputs * inputs
        seen = x[:, i * down : i * down + rows, j * right : j * right + columns, first : first + inputs]
        value[:, i, j, channel] = (seen * kernel[..., channel]).sum((1, 2, 3))
    return value if bias is None else value + np.asarray(bias, np.float64)


def pooled(x, pool):
    (rows, columns), (down, right) = pool.window, pool.stride
    height, width = (x.shape[1] - rows) // down + 1, (x.shape[2] - columns) // right + 1
    value = np.zeros((len(x), height, width, x.shape[3]))
    for i, j in np.ndindex(height, width):
        seen = x[:, i * down : i * down + rows, j * right : j * right + columns]
        value[:, i, j] = seen.max((1, 2)) if pool.kind == "max" else seen.mean((1, 2))
    return value


def full_logits(network, mask, x):
    """In float64 and without the package's forward pass."""
    architecture, a, start = network.architecture, np.asarray(x, np.float64), 0
    for number, (kernel, bias) in enumerate(zip(network.kernels, network.biases, strict=True)):
        kept = np.asarray(mask[start : start + kernel.size]).reshape(kernel.shape)
        start += kernel.size
        weights = np.where(kept, np.asarray(kernel, np.float64), 0)
        if number < len(architecture.convolutions):
            layer = architecture.convolutions[number]
            a = ACTIVATIONS[layer.activation](convolved(a, weights, bias, layer))
            a = a if layer.pool is None else pooled(a, layer.pool)
            continue
        if number > len(architecture.convolutions):
            a = ACTIVATIONS[architecture.activation](a)
        a = a.reshape(len(a), -1) @ weights
        a = a if bias is None else a + np.asarray(bias, np.float64)
    return a


def full_energy(network, mask, x, y):
    """The cross-entropy of the logits times 3."""
    a = 3.0 * full_logits(network, mask, x)
    a = a - a.max(1, keepdims=True)
    return np.mean(np.log(np.exp(a).sum(1)) - a[np.arange(len(y)), np.asarray(y)])


# A network whose masks can all be enumerated: 4 branches of a convolution, and 4 of a dense layer.
TINY = cnn.ConvNetwork(
    Architecture((2, 2, 1), (Convolution(2, (2, 1), pool=Pool("max", (1, 2), (1, 1))),), (2,)),
    (jnp.array([[[[1.5, -0.7]]], [[[0.4, 1.1]]]]), jnp.array([[0.9, -1.2], [-0.8, 0.6]])),
    (None, None),
)
TINY_DATA = (
    jnp.array([[[1.0, -0.5, 0.3, 2.0], [0.2, 1.0, -1.0, 0.7]], [[0.6, 0.1, -0.4, 1.0], [-0.3, 2.0, 0.5, -0.8]]])[
        None
    ],
    jnp.array([0, 1, 1, 0]),
)
