"""Moments of convolutions: those of explicit patches, for every geometry."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import collect_moments
from sa_jax.pruning.convolutions import as_matrices
from sa_jax.pruning.moments import dense_correction, no_patches, with_patches
from sa_jax.pruning.patches import Convolution
from tests.conftest import refusal

# Of `nn.Conv`, by name: inputs, features, and the other arguments.
CASES = {
    "same": ((3, 7, 6, 4), 5, {"kernel_size": (3, 3)}),
    "even kernel, stride": ((3, 7, 6, 4), 5, {"kernel_size": (2, 4), "strides": (2, 3), "padding": "VALID"}),
    "dilation": ((2, 9, 8, 2), 3, {"kernel_size": (3, 2), "kernel_dilation": (2, 1), "padding": ((1, 2), (0, 3))}),
    "groups": ((3, 5, 6, 4), 6, {"kernel_size": (3, 3), "feature_group_count": 2}),
    "depthwise": ((3, 5, 6, 4), 8, {"kernel_size": (3, 3), "strides": 2, "feature_group_count": 4}),
    "one axis, causal": ((3, 9, 4), 5, {"kernel_size": (3,), "padding": "CAUSAL"}),
    "circular": ((2, 5, 6, 3), 4, {"kernel_size": (3, 4), "padding": "CIRCULAR"}),
    "1 x 1": ((4, 5, 5, 6), 3, {"kernel_size": (1, 1), "padding": 0}),
    "three axes": ((2, 4, 3, 5, 2), 3, {"kernel_size": (2, 2, 3), "padding": 1}),
}


def patches_of(layer, x, groups):
    """The patches `[groups, patches, inputs]`: what kernels of a single 1 pick out of the inputs."""
    channels = x.shape[-1] // groups
    inputs = int(np.prod(layer.kernel_size)) * channels
    kernel = jnp.tile(
        jnp.eye(inputs).reshape(*layer.kernel_size, channels, inputs), (1,) * len(layer.kernel_size) + (1, groups)
    )
    one = layer.clone(features=inputs * groups, use_bias=False)
    found = one.apply({"params": {"kernel": kernel}}, x, rngs=None)
    return jnp.moveaxis(found.reshape(-1, groups, inputs), 1, 0)


@pytest.mark.parametrize("case", CASES)
def test_moments_are_those_of_the_patches(case):
    shape, features, options = CASES[case]
    layer = nn.Conv(features, **options)
    groups = options.get("feature_group_count", 1)
    x = jax.random.normal(jax.random.key(0), shape)
    variables = layer.init(jax.random.key(1), x)
    (moments,) = collect_moments(layer, variables, [x[:1], x[1:]]).values()
    patches = patches_of(layer, x, groups)
    wanted = jnp.einsum("gpi,gpj->gij", patches, patches) / patches.shape[1]
    np.testing.assert_allclose(moments.gram, wanted.reshape(moments.gram.shape), atol=2e-5)
    np.testing.assert_allclose(moments.mean, patches.mean(1).reshape(moments.mean.shape), atol=1e-5)
    assert int(moments.count) == patches.shape[1]
    # The matrices of the kernel multiply such patches.
    matrices = as_matrices(variables["params"]["kernel"], groups)
    outputs = jnp.moveaxis(jnp.einsum("gpi,goi->gpo", patches, matrices), 0, 1).reshape(-1, features)
    np.testing.assert_allclose(outputs, layer.apply(variables, x).reshape(-1, features), atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_change_of_pruned_inputs(groups):
    x, dense = jax.random.normal(jax.random.key(0), (2, 3, 5, 6, 4))
    layer = nn.Conv(6, (3, 3), feature_group_count=groups)
    geometry = Convolution((3, 3), padding="SAME", groups=groups)
    moments = with_patches(no_patches(geometry, 4), x[:1], geometry, dense=dense[:1])
    moments = with_patches(moments, x[1:], geometry, dense=dense[1:])
    patches, others = (patches_of(layer, one, groups) for one in (x, dense))
    wanted = jnp.einsum("gpi,gpj->gij", patches, patches - others) / patches.shape[1]
    np.testing.assert_allclose(moments.change, wanted.reshape(moments.gram.shape), atol=2e-5)
    matrices = as_matrices(jax.random.normal(jax.random.key(1), (3, 3, 4 // groups, 6)), groups)
    found = dense_correction(moments, matrices if groups > 1 else matrices[0])
    correction = jnp.einsum("gpo,gpi->goi", jnp.einsum("gpi,goi->gpo", patches - others, matrices), patches)
    np.testing.assert_allclose(found, (correction / patches.shape[1]).reshape(found.shape), atol=1e-4)


def test_weights_leave_samples_out():
    geometry = Convolution((2, 2))
    x = jax.random.normal(jax.random.key(0), (4, 5, 5, 3))
    some = with_patches(no_patches(geometry, 3), x, geometry, weight=jnp.array([1, 1, 0, 0]))
    first = with_patches(no_patches(geometry, 3), x[:2], geometry)
    np.testing.assert_allclose(some.gram, first.gram, rtol=1e-5)
    assert some.count == first.count == 32


@pytest.mark.parametrize(
    ("geometry", "shape", "parts"),
    [
        (Convolution((3, 3), groups=3), (2, 5, 5, 4), ["3 groups do not divide 4 input channels"]),
        (
            Convolution((3, 3), strides=(1, 1, 1)),
            (2, 5, 5, 4),
            ["the strides of a convolution must have 2 entries"],
        ),
        (Convolution((3, 3), dilation=0), (2, 5, 5, 4), ["the dilation of a convolution must be"]),
        (Convolution((3, 3), padding="HALF"), (2, 5, 5, 4), ["the padding of a convolution must be", "'HALF'"]),
        (Convolution((3, 3), padding=(1,)), (2, 5, 5, 4), ["the padding of a convolution needs 2 entries"]),
        (Convolution((7, 7)), (2, 5, 5, 4), ["a kernel of [7, 7] does not fit inputs of [5, 5]"]),
        (Convolution((3, 3)), (5, 4), ["inputs must have 2 axes and channels", "[5, 4]"]),
    ],
)
def test_what_does_not_fit_is_refused(geometry, shape, parts):
    with refusal(*parts):
        with_patches(no_patches(geometry, shape[-1]), jnp.zeros(shape), geometry)
