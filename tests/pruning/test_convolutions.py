"""Convolutions pruned and refitted as matrices, group by group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.baselines import linear
from sa_jax.networks.patterns import NM, Channels, Kernels, Layer, Unit
from sa_jax.pruning.convolutions import as_kernel, as_matrices, error_of, prune_convolution, refit_convolution
from sa_jax.pruning.linear import prune_linear
from sa_jax.pruning.moments import no_patches, with_patches
from sa_jax.pruning.patches import Convolution
from sa_jax.pruning.refitting import refit_layer
from tests.conftest import refusal

KEY = jax.random.key(0)


def convolution(groups=1, channels=4, outputs=8):
    """A kernel, and the Gram matrix of smooth images."""
    image = jax.random.normal(jax.random.key(1), (6, 8, 8, channels))
    image = image + jnp.roll(image, 1, 1) + jnp.roll(image, 1, 2) + image[..., :1]
    geometry = Convolution((3, 3), groups=groups)
    moments = with_patches(no_patches(geometry, channels), image, geometry)
    return jax.random.normal(jax.random.key(2), (3, 3, channels // groups, outputs)), moments.gram


def errors(kernel, gram, pruned):
    return float(error_of(kernel, gram, pruned))


@pytest.mark.parametrize("pattern", [Unit(0.5), NM(2, 4), 0.3], ids=str)
def test_it_is_prune_linear_on_the_matrix(pattern):
    kernel, gram = convolution()
    mask = prune_convolution(KEY, kernel, gram, pattern)
    (matrix,) = as_matrices(kernel)
    np.testing.assert_array_equal(as_matrices(mask)[0], prune_linear(KEY, matrix, gram, pattern))


@pytest.mark.parametrize("groups", [1, 2])
def test_whole_slices_and_whole_channels(groups):
    kernel, gram = convolution(groups)
    slices = prune_convolution(KEY, kernel, gram, Kernels(0.5))
    assert set(slices.sum((0, 1)).ravel().tolist()) == {0, 9}
    assert (slices.any((0, 1)).sum(0) == 2 // groups).all()
    channels = prune_convolution(KEY, kernel, gram, Channels(0.5))
    for one in as_matrices(channels, groups):
        per_channel = one.reshape(8 // groups, 9, 4 // groups).sum((0, 1))
        assert sorted(per_channel.tolist()) == sorted([72 // groups, 0] * (2 // groups))
    largest = jnp.argsort(jnp.argsort(-(kernel**2).sum((0, 1)), axis=0), axis=0) < 2 // groups
    by_magnitude = jnp.broadcast_to(largest, kernel.shape)
    assert errors(kernel, gram, kernel * slices) <= errors(kernel, gram, kernel * by_magnitude)  # equal by 1 of 2


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("density", [0.5, 0.123, Layer(0.3)], ids=str)
def test_the_number_of_kept_branches_is_exact(groups, density):
    kernel, gram = convolution(groups)
    mask = prune_convolution(KEY, kernel, gram, density)
    wanted = round(getattr(density, "density", density) * kernel.size)
    assert mask.sum() == wanted
    by_group = as_matrices(mask, groups).sum((1, 2))
    assert by_group.max() - by_group.min() <= 1


def test_depthwise_is_pruned_and_refitted_channel_by_channel():
    kernel, gram = convolution(groups=4)
    mask = prune_convolution(KEY, kernel, gram, Unit(4 / 9))
    found = refit_convolution(kernel, gram, mask)
    assert found.weight.shape == kernel.shape
    assert found.solved.shape == (8,)
    assert bool(found.solved.all())
    assert not found.weight[~mask].any()
    for group in range(4):
        weight, one, moved = (as_matrices(part, 4)[group] for part in (kernel, mask, found.weight))
        np.testing.assert_allclose(moved, refit_layer(weight, gram[group], one).weight, rtol=1e-4, atol=1e-5)
    assert errors(kernel, gram, found.weight) < errors(kernel, gram, kernel * mask)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_error_is_that_of_the_outputs(groups):
    x = jax.random.normal(jax.random.key(3), (5, 6, 6, 4))
    geometry = Convolution((3, 3), groups=groups)
    gram = with_patches(no_patches(geometry, 4), x, geometry).gram
    kernel = jax.random.normal(jax.random.key(2), (3, 3, 4 // groups, 8))
    pruned = kernel * (jnp.abs(kernel) > 0.5)

    def outputs(kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=numbers, feature_group_count=groups
        )

    wanted = ((outputs(pruned) - outputs(kernel)) ** 2).sum() / (outputs(kernel) ** 2).sum()
    np.testing.assert_allclose(error_of(kernel, gram, pruned), wanted, rtol=1e-4)


def test_annealing_is_ahead_of_wanda():
    kernel, gram = convolution()
    mask = prune_convolution(KEY, kernel, gram, Unit(0.25))
    by_wanda = as_kernel(linear.wanda(as_matrices(kernel)[0], gram, Unit(0.25))[None], kernel.shape)
    assert errors(kernel, gram, kernel * mask) < 0.95 * errors(kernel, gram, kernel * by_wanda)


def test_the_correction_of_pruned_inputs_counts():
    kernel, gram = convolution()
    (matrix,) = as_matrices(kernel)
    correction = 0.3 * matrix @ gram
    mask = prune_convolution(KEY, kernel, gram, Unit(0.5), dense_correction=correction)
    assert (mask != prune_convolution(KEY, kernel, gram, Unit(0.5))).any()
    moved = refit_convolution(kernel, gram, mask, dense_correction=correction).weight
    assert not np.allclose(moved, refit_convolution(kernel, gram, mask).weight)


@pytest.mark.parametrize(
    ("kernel", "gram", "parts"),
    [
        ((4, 8), (4, 4), ["kernel must be [*sizes, channels, outputs]", "[4, 8]"]),
        ((3, 3, 4, 8), (4, 4), ["gram must be [36, 36] or [groups, 36, 36]", "[4, 4]"]),
        ((3, 3, 1, 8), (3, 9, 9), ["3 groups do not divide 8 outputs"]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(kernel, gram, parts):
    with refusal(*parts):
        prune_convolution(KEY, jnp.ones(kernel), jnp.zeros(gram))


def test_more_refusals():
    kernel, gram = convolution(groups=2)
    with refusal("mask must be [3, 3, 2, 8], as the kernel, not [3, 3]"):
        refit_convolution(kernel, gram, jnp.ones((3, 3), bool))
    with refusal("dense_correction must be [2, 4, 18]", "[1, 8, 36]"):
        prune_convolution(KEY, kernel, gram, dense_correction=jnp.zeros((8, 36)))
    with refusal("keeps none of the"):
        prune_convolution(KEY, kernel, gram, 0.001)
