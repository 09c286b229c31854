"""Training of the dense network."""

import chex
import jax
import numpy as np
import pytest

from sa_jax.networks import mlp
from sa_jax.networks.pretrain import pretrain
from tests.conftest import refusal


def separable(samples):
    """Three classes, each around a corner of its own."""
    numbers = np.random.default_rng(0)
    y = np.arange(samples, dtype=np.int32) % 3
    x = 3 * np.eye(3, 5)[y] + numbers.normal(0, 0.5, (samples, 5))
    return x.astype(np.float32), y


def test_pretraining_learns_a_separable_problem(rng_key):
    x, y = separable(300)
    model = mlp.MLP([8, 3], use_bias=False)

    def accuracy(params):
        return (model.apply({"params": params}, x).argmax(1) == y).mean()

    initial = model.init(rng_key, x[:1])["params"]
    told = []
    trained = pretrain(rng_key, model, x, y, 20, 0.01, lambda *progress: told.append(progress))
    assert [epoch for epoch, _ in told] == list(range(1, 21)) and told[-1][1] is trained
    assert accuracy(initial) < 0.8 and accuracy(trained) > 0.95
    assert jax.tree.structure(trained) == jax.tree.structure(initial)
    chex.assert_trees_all_equal(pretrain(rng_key, model, x, y, 20, 0.01), trained, strict=True)
    other = pretrain(jax.random.key(1), model, x, y, 20, 0.01)
    assert not np.allclose(other["Dense_0"]["kernel"], trained["Dense_0"]["kernel"])


def test_pretraining_takes_fewer_samples_than_a_batch(rng_key):
    x, y = separable(12)
    model = mlp.MLP([8, 3])
    trained = pretrain(rng_key, model, x, y, 60, 0.05)
    assert (model.apply({"params": trained}, x).argmax(1) == y).all()


@pytest.mark.parametrize(
    ("epochs", "learning_rate", "problem"),
    [
        (0, 0.01, "epochs must be a whole number of at least 1, not 0"),
        (1.5, 0.01, "epochs must be a whole number of at least 1, not 1.5"),
        (1, 0.0, "learning_rate must be a finite number above 0, not 0.0"),
        (1, np.nan, "learning_rate must be a finite number above 0, not nan"),
    ],
)
def test_senseless_training_is_refused(rng_key, epochs, learning_rate, problem):
    with refusal(problem):
        pretrain(rng_key, mlp.MLP([3]), *separable(6), epochs, learning_rate)
