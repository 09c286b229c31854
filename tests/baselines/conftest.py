"""A trained network on the digits, a small network, and what the tests of baselines share."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.baselines import Budget, Task
from sa_jax.files import datasets
from sa_jax.networks import masks, mlp
from sa_jax.networks.energies import cross_entropy
from sa_jax.networks.mlp import Network
from sa_jax.networks.pretrain import pretrain

BUDGET = Budget(num_samples=64, num_evaluations=64, search_samples=64, epochs=2, score_steps=100)


@pytest.fixture(scope="session")
def digits():
    return datasets.load_dataset("digits")


@pytest.fixture(scope="session")
def trained_network(digits):
    params = pretrain(jax.random.key(0), mlp.MLP([16, 12, 10]), *digits.train, 30, 3e-3)
    return mlp.network_of(params)[1]


@pytest.fixture
def small():
    """6-5-4-3 with biases, and 12 samples."""
    sizes, keys = [6, 5, 4, 3], jax.random.split(jax.random.key(3), 8)
    kernels = tuple(jax.random.normal(k, shape) for k, shape in zip(keys, itertools.pairwise(sizes), strict=False))
    biases = tuple(0.1 * jax.random.normal(k, (n,)) for k, n in zip(keys[3:], sizes[1:], strict=False))
    x = jax.random.normal(keys[6], (12, 6))
    return Network(kernels, biases), x, jax.random.randint(keys[7], (12,), 0, 3)


def task_of(network, x, y, num_kept, energy=None, budget=BUDGET):
    return Task(jax.random.key(5), network, jnp.asarray(x), jnp.asarray(y), num_kept, "relu", energy, budget)


def accuracy(network, split):
    return float((mlp.forward(network, split.inputs).argmax(-1) == split.labels).mean())


def sample_gradients(network, x, y):
    """By automatic differentiation, one sample after the other: `[samples, total]`."""

    def loss(kernels, one_x, one_y):
        logits = mlp.forward(network._replace(kernels=kernels), one_x[None])
        return cross_entropy()(logits, one_y[None])

    return np.stack([masks.flatten(jax.grad(loss)(network.kernels, a, b)) for a, b in zip(x, y, strict=True)])
