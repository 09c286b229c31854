"""How far a change of a convolution reaches, and in what blocks it is evaluated."""

import jax.numpy as jnp
import pytest

from sa_jax.landscapes.cnn import changes
from sa_jax.landscapes.cnn.landscape import cnn_layout
from sa_jax.moves.uniform import uniform_swap
from sa_jax.networks.energies import cross_entropy
from tests.landscapes.cnn.networks import make_network


@pytest.mark.parametrize(
    ("name", "first", "kinds"),
    [
        ("separable", 0, ["few", "few", "spread", "whole", "whole"]),
        ("separable", 2, ["few", "few", "spread"]),
        ("groups", 0, ["few", "whole", "whole"]),
        ("groups", 1, ["few", "spread"]),
        ("strided", 0, ["few", "spread", "whole", "whole"]),
    ],
)
def test_a_change_spreads_where_channels_mix(name, first, kinds):
    layout = cnn_layout(make_network(name), uniform_swap(), cross_entropy())
    assert changes.kinds_of(layout, first) == kinds


def test_blocks_hold_fewer_samples_the_more_values_a_sample_takes(monkeypatch):
    monkeypatch.setattr(changes, "BLOCK_VALUES", 2_000)
    layout = cnn_layout(make_network("pooled"), uniform_swap(), cross_entropy())
    sizes = [changes.block_samples(layout, first) for first in (-1, 0, 1)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    monkeypatch.setattr(changes, "BLOCK_VALUES", 1)
    assert changes.block_samples(layout, -1) == 1


def test_only_if_leaves_the_value():
    assert changes.only_if(jnp.asarray(False), lambda: jnp.float32(2), jnp.float32(1)) == 1
    assert changes.only_if(jnp.asarray(True), lambda: jnp.float32(2), jnp.float32(1)) == 2
