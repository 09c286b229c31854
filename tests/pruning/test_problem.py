"""The fixed parts of a run: initial masks, temperatures and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.networks import masks, mlp
from sa_jax.networks.mlp import Network
from sa_jax.pruning import problem
from sa_jax.pruning.options import SCHEDULES, Options


@pytest.fixture(scope="module")
def task():
    """A network of 4-6-3, inputs and labels."""
    keys = jax.random.split(jax.random.key(0), 4)
    kernels = jax.random.normal(keys[0], (4, 6)), jax.random.normal(keys[1], (6, 3))
    x = jax.random.normal(keys[2], (50, 4))
    return Network(kernels, (None, None)), x, jax.random.randint(keys[3], (50,), 0, 3)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["magnitude", "saliency", "random"])
def test_the_initial_mask_keeps_as_many_branches_as_asked_for(task, start):
    network, x, y = task
    found = problem.prepare(jax.random.key(1), network, x, y, 10, Options(start=start))
    assert int(found.mask.sum()) == 10
    scores = {"magnitude": jnp.abs(masks.flatten(network.kernels)), "saliency": mlp.saliency(network, x, "relu")}
    if start in scores:
        np.testing.assert_array_equal(found.mask, masks.by_score(scores[start], 10))
    given = jnp.arange(network.total) < 7
    own = problem.prepare(jax.random.key(1), network, x, y, 10, Options(start=start), given)
    np.testing.assert_array_equal(own.mask, given)


@pytest.mark.parametrize("schedule", [*SCHEDULES, lambda step: 0.3])
def test_schedules_start_at_the_start_temperature(task, schedule):
    options = Options(schedule=schedule, temperature_start=0.3, temperature_end=0.01)
    found = problem.prepare(jax.random.key(1), *task, 10, options)
    temperature = problem.make_schedule(found, options, 100)
    assert float(temperature(0)) == pytest.approx(0.3, rel=1e-5)
    if schedule in ("geometric", "linear", "cosine"):
        assert float(temperature(99)) == pytest.approx(0.01, rel=1e-4)


def test_positions_hold_weights_where_these_move(task):
    found = problem.prepare(jax.random.key(1), *task, 10, Options())
    assert problem.start_position(found, Options()) is found.mask
    weighted = problem.start_position(found, Options(nudge_share=0.5))
    np.testing.assert_array_equal(weighted[0], found.mask)
    np.testing.assert_array_equal(weighted[1], masks.flatten(task[0].kernels))
