"""Dead units go, and the outputs stay."""

import numpy as np
import pytest

from sa_jax import export
from sa_jax.networks.mlp import Network
from tests.conftest import refusal
from tests.export.networks import close, masked_logits, network_of


@pytest.mark.parametrize("density", [0.0, 0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    ("activation", "biases"), [("relu", True), ("tanh", True), ("gelu", True), ("relu", False)]
)
def test_cleaning_leaves_the_outputs_and_no_dead_unit(density, activation, biases):
    network = network_of((20, 12, 10, 8, 3), biases=biases)
    mask = np.random.default_rng(1).random(network.total) < density
    cleaned = export.clean(network, mask, activation)
    x = np.random.default_rng(2).normal(size=(50, 20)).astype(np.float32)
    close(export.predict(cleaned, x), masked_logits(network, mask, x, activation))
    for layer in range(3):
        assert cleaned.masks[layer].any(0).all() and cleaned.masks[layer + 1].any(1).all()
    assert cleaned.kernels[0].shape[0] == 20 and cleaned.kernels[-1].shape[1] == 3


def test_masks_and_weights_that_do_not_fit_are_refused():
    with refusal("the mask must have the shape [60]"):
        export.clean(network_of((10, 6)), np.ones(5, bool))
    network = network_of((4, 3))
    network.kernels[0][0, 0] = np.nan
    with refusal("NaN or infinite"):
        export.clean(network, np.ones(12, bool))
    with refusal("activation must be one of relu, tanh, gelu, not 'sine'"):
        export.clean(network_of((4, 3)), np.ones(12, bool), "sine")
    network = network_of((2, 1, 1))
    for kernel, bias in zip(network.kernels, network.biases, strict=True):
        kernel[:], bias[:] = 3e38, 3e38
    with refusal("the network's weights hold NaN or infinite values"):  # once a dead unit is folded into a bias
        export.clean(network, np.array([False, False, True]))


def test_arrays_in_the_other_byte_order_give_the_same():
    network = network_of((6, 5, 3))
    mask, x = np.arange(network.total) % 2 == 0, np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    swapped = Network(*(tuple(array.astype(">f4") for array in arrays) for arrays in network))
    found = [export.clean(one, mask) for one in (network, swapped)]
    np.testing.assert_array_equal(*(array for one in found for array in one.kernels[:1]))
    np.testing.assert_array_equal(export.predict(found[1], x.astype(">f4")), export.predict(found[0], x))
