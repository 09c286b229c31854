"""The fixed parts of a run: initial masks, temperatures and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.networks import masks, mlp, patterns
from sa_jax.networks.energies import cross_entropy, error_rate, kl_to_teacher
from sa_jax.networks.mlp import Network
from sa_jax.networks.patterns import NM
from sa_jax.pruning import problem
from sa_jax.pruning.options import ENERGIES, SCHEDULES, Options


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


@pytest.mark.slow
@pytest.mark.parametrize("start", ["magnitude", "saliency", "random"])
def test_the_initial_mask_holds_to_a_pattern(task, start):
    network, x, y = task
    options = Options(pattern=NM(1, 2), move="uniform", start=start)
    found = problem.prepare(jax.random.key(1), network, x, y, 0, options)
    saliency = mlp.saliency(network, x, "relu")
    assert found.saliency.tolist() == saliency.tolist()
    scores = problem.start_scores(jax.random.key(1), network, saliency, options)
    for mask, score in zip(masks.unflatten(found.mask, network.shapes), scores, strict=True):
        pairs = np.asarray(mask).reshape(-1, 2, score.shape[1])
        assert (pairs.sum(1) == 1).all()
        if start != "random":
            higher = np.asarray(score).reshape(pairs.shape).argmax(1)
            np.testing.assert_array_equal(pairs.argmax(1), higher)
    landscape = problem.make_landscape(found, options)
    swap, _ = landscape.propose(
        landscape.draw(jax.random.key(2)), landscape.init(found.mask, found.data), jnp.float32(0)
    )
    sets = patterns.network_sets(NM(1, 2), network.shapes)
    assert sets[swap.pruned] == sets[swap.grown] and swap.pruned != swap.grown


@pytest.mark.parametrize("energy", ENERGIES)
def test_annealing_continues_on_the_energy_of_score_search(task, energy):
    """The logit scale is that of the largest weights, whatever mask the search has found."""
    network, x, y = task
    options = Options(energy=energy)
    scale, targets = problem.calibrated_search(network, x, y, 10, options)
    found = jnp.arange(network.total) < 10
    after = problem.prepare(jax.random.key(1), network, x, y, 10, options, found)
    assert float(after.logit_scale) == float(scale)
    assert (targets.shape, targets.dtype) == (((50, 3), jnp.float32) if "kl" in energy else ((50,), jnp.int32))
    np.testing.assert_array_equal(targets.T, after.data[1])
    # With another start it is that of the mask itself.
    alone = problem.prepare(jax.random.key(1), network, x, y, 10, options._replace(start="magnitude"), found)
    largest = problem.prepare(jax.random.key(1), network, x, y, 10, options._replace(start="magnitude"))
    assert float(largest.logit_scale) == float(scale) != float(alone.logit_scale)
    given, _ = problem.calibrated_search(network, x, y, 10, options._replace(logit_scale=2.5))
    assert float(given) == 2.5


@pytest.mark.parametrize("energy", ENERGIES)
def test_estimates_are_of_an_energy_that_has_a_slope(task, energy):
    network, x, y = task
    options = Options(energy=energy, logit_scale=2.0)
    logits, labels = mlp.forward(network, x), jax.nn.softmax(x[:, :3], 1) if "kl" in energy else y
    expected = kl_to_teacher(2.0) if "kl" in energy else cross_entropy(2.0)
    guide = problem.guiding_energy(2.0, options)
    assert float(guide(logits, labels)) == pytest.approx(float(expected(logits, labels)))
    assert np.any(jax.grad(guide)(logits, labels))
    found = problem.prepare(jax.random.key(1), network, x, y, 10, options._replace(start="magnitude"))
    own = problem.make_energy(found, options)
    assert float(own(logits, labels)) == pytest.approx(
        float((error_rate() if energy == "error_rate" else expected)(logits, labels))
    )


@pytest.mark.parametrize("schedule", [*SCHEDULES, lambda step: 0.3])
def test_schedules_start_at_the_start_temperature(task, schedule):
    options = Options(start="magnitude", schedule=schedule, temperature_start=0.3, temperature_end=0.01)
    found = problem.prepare(jax.random.key(1), *task, 10, options)
    temperature = problem.make_schedule(found, options, 100)
    assert float(temperature(0)) == pytest.approx(0.3, rel=1e-5)
    if schedule in ("geometric", "linear", "cosine"):
        assert float(temperature(99)) == pytest.approx(0.01, rel=1e-4)


def test_positions_hold_weights_where_these_move(task):
    found = problem.prepare(jax.random.key(1), *task, 10, Options(start="magnitude"))
    assert problem.start_position(found, Options()) is found.mask
    weighted = problem.start_position(found, Options(nudge_share=0.5))
    np.testing.assert_array_equal(weighted[0], found.mask)
    np.testing.assert_array_equal(weighted[1], masks.flatten(task[0].kernels))
