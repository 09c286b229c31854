"""Convolutional networks: their arithmetic in both layouts, their params, and what does not fit."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.networks import cnn, masks
from sa_jax.networks.cnn import DSCNN, LENET5, Architecture, Convolution, Pool
from sa_jax.networks.pretrain import pretrain
from tests.conftest import refusal
from tests.landscapes.cnn.networks import ARCHITECTURES, full_logits, make_network, make_samples


def outputs_last(network, x):
    """The logits, `[samples, classes]`, by the functions that have the samples last."""
    values = cnn.samples_last(x, network.architecture)
    stages = cnn.stages_of(network.architecture)
    for stage, kernel, bias in zip(stages, network.kernels, network.biases, strict=False):
        matrix = kernel.reshape(-1, kernel.shape[-1])
        values = cnn.activate(stage, cnn.convolve(stage, matrix, bias, values))
    values = cnn.flattened(values)
    for number in range(len(stages), len(network.kernels)):
        bias = network.biases[number]
        values = network.kernels[number].T @ values + (0 if bias is None else bias[:, None])
        if number < len(network.kernels) - 1:
            values = cnn.ACTIVATIONS[network.architecture.activation](values)
    return values.T


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("use_bias", [True, False])
def test_both_layouts_equal_the_definition(name, use_bias):
    network = make_network(name, use_bias)
    x, _ = make_samples(network)
    mask = np.random.default_rng(2).random(network.total) < 0.6
    expected = full_logits(network, mask, x)
    pruned = cnn.masked(network, jnp.asarray(mask))
    np.testing.assert_allclose(jax.jit(cnn.forward)(pruned, x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jit(cnn.forward)(pruned, x.reshape(len(x), -1)), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jit(outputs_last)(pruned, x), expected, rtol=1e-4, atol=1e-5)


def test_known_networks_have_their_sizes():
    shapes = cnn.kernel_shapes(LENET5)
    assert sum(np.prod(shape) + shape[-1] for shape in shapes) == 61_706
    assert cnn.stages_of(LENET5)[-1].pooled == (5, 5, 16)
    assert [stage.depthwise for stage in cnn.stages_of(DSCNN)] == [False, True, False, True, False, True, False]
    assert cnn.kernel_shapes(DSCNN)[-1] == (64, 10)


def test_params_there_and_back():
    network = make_network("separable")
    params = cnn.params_of(network)
    assert list(params) == cnn.layer_names(network.architecture)
    again = cnn.network_of({"params": params}, network.architecture)
    jax.tree.map(np.testing.assert_array_equal, again, network)
    assert again.total == sum(kernel.size for kernel in network.kernels)
    kept = cnn.kernel_masks(network, jnp.arange(network.total) % 3 == 0)
    assert [mask.shape for mask in kept] == [kernel.shape for kernel in network.kernels]
    np.testing.assert_array_equal(masks.flatten(kept), np.arange(network.total) % 3 == 0)


@pytest.mark.slow
def test_a_network_is_trained_and_keeps_its_architecture_under_jit():
    architecture = Architecture((4, 4, 1), (Convolution(4, (3, 3), padding="SAME", pool=Pool("max")),), (2,))
    x = np.random.default_rng(0).normal(size=(256, 16)).astype(np.float32)
    y = (x[:, :8].sum(1) > x[:, 8:].sum(1)).astype(np.int32)
    network = cnn.network_of(pretrain(jax.random.key(0), cnn.CNN(architecture), x, y, 30, 1e-2), architecture)
    halved = jax.jit(lambda network: jax.tree.map(lambda leaf: leaf / 2, network))(network)
    assert halved.architecture == architecture and hash(architecture)
    assert (cnn.forward(network, jnp.asarray(x)).argmax(1) == y).mean() > 0.75


@pytest.mark.parametrize("whole", [True, False])
def test_batch_norm_is_folded(whole):
    """Into a convolution with a bias, and a batch norm with scale and offset; or both without."""
    numbers = np.random.default_rng(0)
    kernel, x = (jnp.asarray(numbers.normal(size=shape), jnp.float32) for shape in ((2, 2, 3, 4), (5, 4, 4, 3)))
    mean, bias, scale, offset = (jnp.asarray(numbers.normal(size=4), jnp.float32) for _ in range(4))
    variance = jnp.asarray(numbers.random(4) + 0.1, jnp.float32)
    convolution = nn.Conv(4, (2, 2), use_bias=whole)
    params = {"kernel": kernel, "bias": bias} if whole else {"kernel": kernel}
    norm = nn.BatchNorm(True, use_bias=whole, use_scale=whole, epsilon=1e-3)
    given = {"params": {"scale": scale, "bias": offset}} if whole else {}
    between = convolution.apply({"params": params}, x)
    expected = norm.apply({**given, "batch_stats": {"mean": mean, "var": variance}}, between)
    more = (scale, offset) if whole else (None, None)
    found, added = cnn.fold_batch_norm(kernel, bias if whole else None, mean, variance, *more, epsilon=1e-3)
    folded = nn.Conv(4, (2, 2)).apply({"params": {"kernel": found, "bias": added}}, x)
    np.testing.assert_allclose(folded, expected, rtol=1e-4, atol=1e-5)


def with_convolution(**fields):
    layers = (LENET5.convolutions[0], LENET5.convolutions[1]._replace(**fields))
    return LENET5._replace(convolutions=layers)


@pytest.mark.parametrize(
    ("architecture", "parts"),
    [
        ([6, 16], ["architecture must be an Architecture", "list"]),
        (LENET5._replace(convolutions=()), ["needs a convolution and a dense layer"]),
        (LENET5._replace(dense=()), ["needs a convolution and a dense layer"]),
        (LENET5._replace(activation="none"), ["activation must be one of relu, tanh, gelu"]),
        (with_convolution(groups=4), ["convolution 1 has 4 groups", "6 inputs and 16 outputs"]),
        (with_convolution(window=(15, 5)), ["the window of convolution 1", "larger than its inputs"]),
        (with_convolution(pool=Pool("max", (11, 2))), ["the window of convolution 1 or of its pooling"]),
        (with_convolution(pool=Pool("sum")), ["pool must be one of max, mean, not 'sum'"]),
        (with_convolution(padding="FULL"), ["padding must be one of SAME, VALID, not 'FULL'"]),
        (with_convolution(activation="sine"), ["activation must be one of relu, tanh, gelu, none, not 'sine'"]),
    ],
)
def test_layers_that_do_not_fit_are_named(architecture, parts):
    with refusal(*parts):
        cnn.stages_of(architecture)


def test_arrays_that_do_not_fit_are_named():
    network = make_network("pooled")
    params = cnn.params_of(network)
    with refusal("missing ['Conv_1']", "unknown ['Other/kernel']"):
        cnn.network_of({"Other" if name == "Conv_1" else name: {"kernel": arrays["kernel"]}
                        for name, arrays in params.items()}, network.architecture)  # fmt: skip
    with refusal("needs kernels of the shapes"):
        cnn.check_conv_network(dataclasses.replace(network, kernels=network.kernels[::-1]))
    with refusal("images must have the shape [samples, 28, 28, 1], or flat, not [3, 27]"):
        cnn.samples_last(np.ones((3, 27)), LENET5)
