"""Derivatives with respect to the weights of convolutional networks, by forward passes and by back-propagation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.networks import cnn, cnn_slopes
from sa_jax.networks.energies import cross_entropy
from tests.landscapes.cnn.networks import ARCHITECTURES, full_logits, make_network, make_samples
from tests.settings import no_derivatives


def pruned(name, samples=20):
    network = make_network(name)
    x, y = make_samples(network, samples)
    mask = np.random.default_rng(3).random(network.total) < 0.7
    return network, mask, cnn.samples_last(x, network.architecture), x, y


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_slopes_of_forward_passes_are_near_the_derivatives(name, monkeypatch):
    """With a smaller step than in use, which must not cross kinks for this; of pruned branches too."""
    monkeypatch.setattr(cnn_slopes, "PERTURBATION", 1e-3)
    network, mask, inputs, _, y = pruned(name)
    energy, masked = cross_entropy(2.0), cnn.masked(network, jnp.asarray(mask))

    @jax.jit
    def by_forward_passes(network):
        entering, outputs = cnn_slopes.layer_outputs(network, inputs)
        used = [len(y)] * len(network.kernels)
        return cnn_slopes.forward_slopes(network, entering, outputs, [y], energy, used)

    with no_derivatives():
        found = by_forward_passes(masked)
    expected = jax.jit(lambda network: cnn_slopes.gradient_slopes(network, inputs, [y], energy))(masked)
    for one, other, shape in zip(found, expected, network.shapes, strict=True):
        assert one.shape == other.shape == shape and np.abs(other).max() > 0
        assert np.corrcoef(np.ravel(one), np.ravel(other))[0, 1] > 0.98
        np.testing.assert_allclose(one, other, atol=0.1 * np.abs(other).max())


@pytest.mark.slow
def test_layer_outputs_and_fewer_samples():
    network, mask, inputs, x, y = pruned("separable")
    masked = cnn.masked(network, jnp.asarray(mask))
    entering, outputs = jax.jit(cnn_slopes.layer_outputs)(masked, inputs)
    np.testing.assert_allclose(outputs[-1].T, full_logits(network, mask, x), rtol=1e-4, atol=1e-5)
    assert [array.shape[-1] for array in (*entering, *outputs)] == [20] * 12
    used = [3, 4, 5, 6, 20, 20]
    arguments = [y], cross_entropy(), used
    found = jax.jit(lambda *values: cnn_slopes.forward_slopes(masked, *values, *arguments))(entering, outputs)
    some = [[array[..., :3] for array in values] for values in (entering, outputs)]
    fewer = jax.jit(lambda *values: cnn_slopes.forward_slopes(masked, *values, [y[:3]], cross_entropy(), [3] * 6))(
        *some
    )
    np.testing.assert_allclose(found[0], fewer[0], rtol=1e-4, atol=1e-5)


def test_costs_are_those_of_the_layers():
    costs, passes = cnn_slopes.forward_costs(cnn.DSCNN), cnn_slopes.layer_costs(cnn.DSCNN)
    assert len(costs) == len(passes) == 8
    assert all(cost > own for cost, own in zip(costs, passes, strict=True))
    assert passes[-1] == 640
