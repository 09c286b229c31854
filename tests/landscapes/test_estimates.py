"""Estimates of informed swaps and nudges, from forward passes and from derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.landscapes.mlp import Weighted, estimates, masked_mlp
from sa_jax.moves.informed import informed_swap
from sa_jax.moves.nudges import nudge
from sa_jax.networks import masks, mlp, slopes
from sa_jax.networks.energies import cross_entropy, error_rate, kl_to_teacher
from tests.conftest import refusal
from tests.landscapes.networks import TINY, full_energy, make_network, make_samples, record_estimates
from tests.settings import no_derivatives


def estimates_of(network, mask, data, energy, activation="tanh", **options):
    """Effects, slopes and curvatures at a mask, as arrays."""
    landscape = masked_mlp(network, record_estimates(), energy, activation, **options)
    return [np.asarray(values) for values in jax.jit(landscape.init)(mask, data).swaps]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "use_bias", "activation", "teacher"),
    [("one layer", False, "relu", False), ("three, narrow", True, "gelu", True), ("five", False, "tanh", False)],
)
def test_estimates_from_forward_passes_agree_with_derivatives(name, use_bias, activation, teacher, monkeypatch):
    monkeypatch.setattr(slopes, "PERTURBATION", 1e-3)
    network = make_network(name, use_bias)
    x, y = make_samples(network, 300)
    targets, energy = y, cross_entropy(2.0)
    if teacher:
        targets, energy = jax.nn.softmax(mlp.forward(network, x, activation), 1).T, kl_to_teacher(2.0)
    mask = masks.random(jax.random.key(3), network.total, network.total // 2)
    forward, gradient = (
        estimates_of(network, mask, (x.T, targets), energy, activation, estimates=kind)
        for kind in slopes.ESTIMATES
    )
    for found, expected in zip(forward, gradient, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0.03, atol=0.01 * np.abs(expected).max())
        assert np.abs(expected).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", slopes.ESTIMATES)
@pytest.mark.parametrize("name", ["two layers", "three, narrow"])
def test_slopes_and_curvatures_are_those_of_each_weight(name, kind, monkeypatch):
    """Of weights that have moved; for a pruned branch, those that it will have once it is kept, to first order."""
    monkeypatch.setattr(slopes, "PERTURBATION", 1e-3)
    network = make_network(name, True)
    x, y = make_samples(network, 40)
    mask = masks.random(jax.random.key(3), network.total, network.total // 2)
    weights = masks.flatten(network.kernels) + 0.1
    landscape = masked_mlp(network, record_estimates(), cross_entropy(2.0), "tanh", True, kind)
    estimated = jax.jit(landscape.init)(Weighted(mask, weights), (x.T, y)).swaps

    def energy(effective, x, y):
        kernels = tuple(masks.unflatten(effective, network.shapes))
        return cross_entropy(2.0)(mlp.forward(network._replace(kernels=kernels), x, "tanh"), y)

    effective = jnp.where(mask, weights, 0)
    each = jax.vmap(lambda x, y: jax.grad(energy)(effective, x[None], y[None]))(x, y)
    curvatures = (each**2).mean(0)
    rtol, atol = (1e-3, 1e-5) if kind == "gradient" else (0.02, 5e-3)
    np.testing.assert_allclose(estimated.curvatures, curvatures, rtol, atol)
    expected = each.mean(0) + jnp.where(mask, 0, weights * curvatures)
    np.testing.assert_allclose(estimated.slopes, expected, rtol, atol)
    assert np.abs(expected).max() > 100 * atol


@pytest.mark.slow
@pytest.mark.parametrize("kind", slopes.ESTIMATES)
@pytest.mark.parametrize("name", ["one layer", "three, narrow", "four"])
def test_estimated_effects_are_those_of_small_weights(name, kind, monkeypatch):
    """The energy with each branch less that without it, where the branch is so weak that two orders tell it."""
    monkeypatch.setattr(estimates, "LEAST_SAMPLES", 700)
    network = make_network(name, True)
    x, y = make_samples(network, 700)  # several blocks of samples, the last of which overlaps the one before
    mask = masks.random(jax.random.key(3), network.total, network.total // 2)
    weak = jax.random.bernoulli(jax.random.key(4), 0.4, (network.total,))
    scales = masks.unflatten(jnp.where(weak, 1e-3, 1.0), network.shapes)
    kernels = tuple(scale * kernel for scale, kernel in zip(scales, network.kernels, strict=True))
    network = network._replace(kernels=kernels)
    landscape = masked_mlp(network, record_estimates(), cross_entropy(3.0), "tanh", estimates=kind)
    estimated = jax.jit(landscape.init)(mask, (x.T, y)).swaps.effects
    energy = full_energy(network, "cross_entropy", "tanh")
    exact = []
    for branch in np.flatnonzero(weak):
        with_it, without = np.array(mask), np.array(mask)
        with_it[branch], without[branch] = True, False
        exact.append(energy(with_it, x, y) - energy(without, x, y))
    np.testing.assert_allclose(estimated[weak], exact, rtol=0.03, atol=2e-6)
    assert np.abs(exact).max() > 1e-4


@pytest.mark.slow
def test_samples_left_out_of_estimates_are_spread_evenly(monkeypatch):
    """They are sorted by their labels here, and each label has its share of those that are used."""
    network = make_network("three, narrow", True)
    x, y = make_samples(network, 720)
    order = jnp.argsort(y)
    x, y = x[order], y[order]
    mask = masks.random(jax.random.key(3), network.total, network.total // 2)
    energy = cross_entropy(2.0)
    monkeypatch.setattr(estimates, "LEAST_SAMPLES", 720)
    every = estimates_of(network, mask, (x.T, y), energy)
    monkeypatch.setattr(estimates, "LEAST_SAMPLES", 60)
    monkeypatch.setattr(estimates, "MOST_PASSES", 1e-6)
    some = estimates_of(network, mask, (x.T, y), energy)
    derived = estimates_of(network, mask, (x.T, y), energy, estimates="gradient")
    for found, on_all, expected in zip(some, every, derived, strict=True):
        size = np.abs(expected).max()
        assert (np.abs(found - on_all) > 0.01 * size).any()  # fewer samples were used
        assert np.corrcoef(found, expected)[0, 1] > 0.95
        np.testing.assert_allclose(on_all, expected, rtol=0.1, atol=0.05 * size)
    used = estimates._used_samples(network.shapes, 720)
    np.testing.assert_array_equal(used // 12, np.arange(60))
    monkeypatch.setattr(estimates, "LEAST_SAMPLES", 720)
    by_hand = estimates_of(network, mask, (x[used].T, y[used]), energy)
    for found, expected in zip(some, by_hand, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_labels_that_repeat_are_all_used(monkeypatch):
    monkeypatch.setattr(estimates, "LEAST_SAMPLES", 100)
    monkeypatch.setattr(estimates, "MOST_PASSES", 1e-6)
    labels = np.arange(1_000) % 10
    used = labels[estimates._used_samples([(64, 32), (32, 10)], 1_000)]
    assert len(used) == 100 and set(used) == set(range(10))


def test_costly_estimates_use_fewer_samples(monkeypatch):
    """As few as they may cost, but at least so many; narrow networks use all."""
    monkeypatch.setattr(estimates, "MOST_PASSES", 2.0)
    monkeypatch.setattr(estimates, "LEAST_SAMPLES", 100)
    deep, narrow = [(100, 400), (400, 400), (400, 10)], [(500, 10), (10, 2)]
    costs = [units * cost for (_, units), cost in zip(deep, slopes.forward_costs(deep), strict=True)]
    passes = sum(costs) / sum(units * inputs for inputs, units in deep)
    assert passes > 4
    assert len(estimates._used_samples(deep, 10**6)) == 10**6 // int(np.ceil(passes / 2))
    assert len(estimates._used_samples(deep, 399)) == 399 // 3
    assert [estimates._used_samples(deep, samples) for samples in (1, 99, 100, 199)] == [slice(None)] * 4
    assert estimates._used_samples(narrow, 10**6) == slice(None)


@pytest.mark.parametrize("kind", slopes.ESTIMATES)
def test_an_energy_without_a_slope_has_another_as_its_guide(kind):
    """The state's energy stays the landscape's own."""
    network = make_network("three, narrow", True)
    x, y = make_samples(network, 50)
    mask = masks.random(jax.random.key(3), network.total, network.total // 2)
    guided = masked_mlp(network, record_estimates(), error_rate(), "tanh", False, kind, cross_entropy(2.0))
    state = jax.jit(guided.init)(mask, (x.T, y))
    expected = estimates_of(network, mask, (x.T, y), cross_entropy(2.0), estimates=kind)
    for found, wanted in zip(state.swaps, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert float(state.energy) == pytest.approx(full_energy(network, "error_rate", "tanh")(np.asarray(mask), x, y))
    if kind == "gradient":
        assert not any(
            np.any(values) for values in estimates_of(network, mask, (x.T, y), error_rate(), estimates=kind)
        )


@pytest.mark.slow
def test_estimates_are_made_inside_shard_map(monkeypatch):
    """In chunks of units and blocks of samples, whose first values must vary over the devices."""
    monkeypatch.setattr(estimates, "EVALUATED_SAMPLES", 20)
    monkeypatch.setattr(slopes, "CACHED_VALUES", 100)
    network = make_network("three, narrow", True)
    x, y = make_samples(network, 50)
    landscape = masked_mlp(network, record_estimates(), cross_entropy(2.0))
    keys = jax.random.split(jax.random.key(5), 4)
    starts = jax.vmap(lambda key: masks.random(key, network.total, network.total // 3))(keys)

    def told(masks):
        return jax.lax.map(lambda mask: landscape.init(mask, (x.T, y)).swaps, masks)

    mesh = jax.make_mesh((2,), ("chains",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("chains")
    spread = jax.jit(jax.shard_map(told, mesh=mesh, in_specs=spec, out_specs=spec))(starts)
    for found, expected in zip(spread, jax.jit(told)(starts), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("moves_weights", [False, True])
def test_forward_estimates_take_no_derivative(moves_weights):
    network = make_network("four", True)
    x, y = make_samples(network)
    start = jnp.arange(network.total) % 3 == 0
    swaps = informed_swap()
    if moves_weights:
        start, swaps = Weighted(start, masks.flatten(network.kernels)), nudge(swaps, jnp.float32(0.1))

    def trace(kind):
        landscape = masked_mlp(network, swaps, cross_entropy(), "gelu", moves_weights, kind)

        def evaluated(start):
            state = landscape.init(start, (x.T, y))
            return state, landscape.refresh(state, (x.T, y))

        return jax.eval_shape(evaluated, start)

    with no_derivatives():
        trace("forward")
        with pytest.raises(AssertionError, match="a derivative is taken"):
            trace("gradient")


def test_estimates_are_made_again_at_each_refresh():
    network = make_network("three, narrow", True)
    x, y = make_samples(network, 50)
    landscape = masked_mlp(network, record_estimates(), cross_entropy())
    begin = jax.jit(landscape.init)
    state = begin(masks.random(jax.random.key(3), network.total, 20), (x.T, y))
    moved = state._replace(position=~state.position)
    fresh = begin(~state.position, (x.T, y))
    for again, once in zip(jax.jit(landscape.refresh)(moved, (x.T, y)).swaps, fresh.swaps, strict=True):
        np.testing.assert_allclose(again, once, rtol=1e-5, atol=1e-7)
    assert landscape.refresh_steps == 1_000
    wide = mlp.Network((jnp.zeros((500, 400)),), (None,))
    assert masked_mlp(wide, record_estimates(), cross_entropy()).refresh_steps == 5_000


def test_an_unknown_kind_of_estimates_is_named():
    with refusal("estimates must be one of forward, gradient, not 'backward'"):
        masked_mlp(TINY, informed_swap(), cross_entropy(), estimates="backward")


def test_params_in_place_of_a_network_are_named():
    with refusal("network must be a Network, such as network_of(params)[1], not dict"):
        masked_mlp({}, informed_swap(), cross_entropy())
    with refusal("energy must be a function such as cross_entropy(), not 'cross_entropy'"):
        masked_mlp(TINY, informed_swap(), "cross_entropy")
