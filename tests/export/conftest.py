"""What several tests of exports take."""

import numpy as np
import pytest

from sa_jax import export
from tests.export.networks import network_of


@pytest.fixture(scope="module")
def mixed():
    """A network of several widths."""
    network = network_of((60, 40, 30, 20, 3))
    mask = np.random.default_rng(9).random(network.total) < 0.3
    return export.quantize(export.clean(network, mask, "tanh"), [3, 8, 32, 1])
