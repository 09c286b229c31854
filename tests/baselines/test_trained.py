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
    for name in ("edge_popup", "edge_popup_momentum", "movement", "l0_gates", "magnitude_finetuned"):
        task = task_of(trained_network, *digits.train, 100, budget=BUDGET._replace(epochs=60))
        mask, network = METHODS[name].find(task)
        assert accuracy(mlp.masked(network, mask), digits.train) > least + 0.05, name


def test_momentum_divides_all_scores_by_one_scale():
    """Recomputed in NumPy; Adam would divide each score by a scale of its own."""
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(4, 6)).astype(np.float32) * [1, 2, 5, 10, 0.1, 0]
    optimizer = trained.momentum(lambda step: 0.5 / (1 + step))
    position = {"one": jnp.zeros(4), "two": jnp.zeros(2)}
    state, mean, square = optimizer.init(position), np.zeros(6), 0.0
    for number, slopes in enumerate(steps):
        tree = {"one": jnp.asarray(slopes[:4], jnp.float32), "two": jnp.asarray(slopes[4:], jnp.float32)}
        updates, state = optimizer.update(tree, state)
        mean = 0.9 * mean + 0.1 * slopes
        square = 0.999 * square + 0.001 * (slopes**2).mean()
        expected = -0.5 / (1 + number) * mean / np.sqrt(square / (1 - 0.999 ** (number + 1)))
        np.testing.assert_allclose(np.concatenate([updates["one"], updates["two"]]), expected, rtol=2e-4)


def test_momentum_moves_nothing_where_nothing_has_an_effect():
    optimizer = trained.momentum(0.1)
    updates, _ = optimizer.update(jnp.zeros(3), optimizer.init(jnp.ones(3)))
    np.testing.assert_array_equal(updates, 0)


@pytest.mark.slow
def test_the_learning_rate_of_adam_is_not_that_of_momentum(digits, trained_network):
    def found(name, learning_rate):
        budget = BUDGET._replace(learning_rate=learning_rate)
        return METHODS[name].find(task_of(trained_network, *digits.train, 100, budget=budget)).mask

    assert np.array_equal(found("edge_popup_momentum", 1e-3), found("edge_popup_momentum", 1.0))
    assert not np.array_equal(found("edge_popup_scaled", 1e-3), found("edge_popup_scaled", 1.0))


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
