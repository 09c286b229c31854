"""Trained scores, gates and weights do better than magnitude; layouts of smaller dense networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.baselines import METHODS, trained
from sa_jax.networks import mlp
from tests.baselines.conftest import BUDGET, accuracy, task_of
from tests.conftest import refusal


@pytest.mark.slow
def test_trained_gates_beat_magnitude(digits, trained_network):
    magnitude = METHODS["magnitude_global"].find(task_of(trained_network, *digits.train, 100)).mask
    least = accuracy(mlp.masked(trained_network, magnitude), digits.train)
    for name in ("edge_popup", "movement", "l0_gates", "magnitude_finetuned"):
        task = task_of(trained_network, *digits.train, 100, budget=BUDGET._replace(epochs=60))
        mask, network = METHODS[name].find(task)
        assert accuracy(mlp.masked(network, mask), digits.train) > least + 0.05, name


def test_no_dense_network_so_small():
    assert trained.smaller_layouts((4, 8, 2), 48) == [(4, 8, 2)]
    assert trained.smaller_layouts((4, 8, 2), 6) == [(4, 1, 2)]
    assert trained.smaller_layouts((4, 8, 8, 2), 6) == [(4, 1, 2)]
    assert trained.smaller_layouts((4, 8, 8, 2), 7) == [(4, 1, 2), (4, 1, 1, 2)]
    with refusal("no dense network of 4 inputs", "makes 6"):
        trained.smaller_layouts((4, 8, 2), 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edge_popup", "l0_gates"])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_weights_that_are_all_the_same_get_finite_scores(name, weight, small, monkeypatch):
    """Their standard deviation is 0."""
    network, x, y = small
    network = network._replace(kernels=tuple(jnp.full_like(kernel, weight) for kernel in network.kernels))
    starts, train = [], trained._train
    monkeypatch.setattr(
        trained, "_train", lambda key, start, *rest: starts.append(start) or train(key, start, *rest)
    )
    with jax.disable_jit():
        mask = getattr(trained, name)(jax.random.key(0), network, x, y, 9, training=trained.Training(1))
    assert int(mask.sum()) == 9
    assert all(np.isfinite(array).all() for array in jax.tree.leaves(starts)) and starts
