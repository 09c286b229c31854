"""Replica exchange and population annealing sample the Boltzmann distribution and cross barriers."""

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from sa_jax import InputError, anneal, from_energy, geometric_schedule, linear_schedule
from sa_jax.annealing.schedules import constant_schedule
from sa_jax.annealing.tempering import population_anneal, temper
from sa_jax.testing import boltzmann, check_boltzmann
from tests.settings import strict, x64

WELLS = jnp.array([0.3, 0.0, 0.9, 0.5, 1.4, 0.2])
LADDER = jnp.array([0.25, 0.5, 1.5, 4.0])


def ring_move(rng_key, x):
    return (x + jnp.where(jax.random.bernoulli(rng_key), 1, -1)) % WELLS.size


def lopsided_move(rng_key, x):
    up = jax.random.bernoulli(rng_key, 0.8)
    return (x + jnp.where(up, 1, -1)) % WELLS.size, jnp.where(up, jnp.log(0.25), jnp.log(4.0))


def check_visits(visited, temperature):
    check_boltzmann(np.bincount(np.ravel(visited), minlength=WELLS.size), WELLS, temperature)


ring = from_energy(lambda x: WELLS[x], ring_move)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(("num_steps", "chain_batch"), [(1_000, 1), (1_100, None)])
def test_every_rung_samples_its_boltzmann_distribution(num_steps, chain_batch):
    """Samples are taken right after exchanges of either half of the pairs, so that a wrong exchange shows."""

    def sample(key):
        result = temper(key, ring, jnp.int32(0), LADDER, num_steps, chain_batch=chain_batch)
        return result.final, result.exchange_share

    final, shares = jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(0), 4_000))
    for rung, temperature in enumerate(LADDER.tolist()):
        check_visits(final[:, rung], temperature)
    assert ((shares.mean(0) > 0.2) & (shares.mean(0) < 0.99)).all()


def rugged(x):
    return 0.05 * (x - 10) ** 2 + 4 * jnp.cos(2 * x)


def hop(rng_key, x):
    return x + 0.3 * jax.random.normal(rng_key)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_exchange_crosses_barriers_that_stop_a_cold_chain():
    landscape, ladder = from_energy(rugged, hop), jnp.geomspace(0.1, 10.0, 8)
    keys = jax.random.split(jax.random.key(1), 20)
    tempered = jax.jit(jax.vmap(lambda key: temper(key, landscape, 0.0, ladder, 20_000)))(keys)
    alone = jax.vmap(lambda key: anneal(key, landscape, 0.0, constant_schedule(0.1), 160_000).best_energy)(keys)
    lowest = float(rugged(jnp.linspace(5, 15, 10_001)).min())
    assert float(alone.min()) > lowest + 1
    assert (tempered.best_energy < lowest + 0.1).all()
    assert (tempered.round_trips.sum(1) > 0).all()
    np.testing.assert_allclose(tempered.final_energy, rugged(tempered.final), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("exchange_every", [7, 250])
def test_exchanges_at_any_time_keep_the_distributions(exchange_every):
    """Also where exchanges are tried in the middle of a block of random numbers, and after several of them."""

    def sample(key):
        result = temper(key, ring, jnp.int32(0), LADDER, 6 * exchange_every, exchange_every=exchange_every)
        return result.final, result.num_tried

    walk = jax.jit(jax.vmap(sample))
    final, tried = walk(jax.random.split(jax.random.key(0), 4_000))
    assert (tried == 3).all()
    if exchange_every == 250:  # 42 steps from the same start are too few
        for rung, temperature in enumerate(LADDER.tolist()):
            check_visits(final[:, rung], temperature)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_the_trace_has_the_energies_of_each_rung():
    """Their means are those of the enumerated distributions."""
    result = temper(jax.random.key(0), ring, jnp.int32(0), LADDER, 200_000, exchange_every=5, trace_every=20)
    trace = result.trace
    assert trace.step.tolist() == list(range(20, 200_001, 20))
    np.testing.assert_array_equal(trace.energy[-1], result.final_energy)
    np.testing.assert_array_equal(trace.temperature, np.broadcast_to(result.temperatures, (10_000, 4)))
    means = [np.dot(boltzmann(WELLS, temperature), WELLS) for temperature in LADDER.tolist()]
    np.testing.assert_allclose(trace.energy.mean(0), means, atol=0.02)
    counts = [
        np.bincount(np.searchsorted(np.sort(WELLS), trace.energy[::5, rung]), minlength=6) for rung in range(4)
    ]
    for rung, temperature in enumerate(LADDER.tolist()):
        check_boltzmann(counts[rung], np.sort(WELLS), temperature)
    assert temper(jax.random.key(0), ring, 0, LADDER, 200).trace is None


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("ladder", [np.geomspace(0.05, 10, 6), [0.05, 0.06, 0.07, 0.08, 0.09, 10.0]])
def test_an_adapted_ladder_exchanges_equally_often_everywhere(ladder):
    """The example of docs/chains.md, from two ladders; the second one exchanges nothing at its last gap."""
    target = jnp.array([7.0, -3.0, 1.0])
    landscape = from_energy(
        lambda x: 0.1 * ((x - target) ** 2).sum() + 2 * jnp.cos(2 * x).sum(),
        lambda rng_key, x: x + 0.5 * jax.random.normal(rng_key, x.shape),
    )
    walk = partial(temper, landscape=landscape, position=jnp.zeros(3), temperatures=ladder, exchange_every=20)
    result = walk(jax.random.key(0), num_steps=160_000, adapt_steps=60_000, trace_every=20_000)
    np.testing.assert_allclose(result.exchange_share, result.exchange_share.mean(), atol=0.08)
    assert 0.2 < result.exchange_share.mean() < 0.35 and result.num_tried.tolist() == [2_500] * 5
    np.testing.assert_allclose(result.temperatures[jnp.array([0, -1])], [0.05, 10.0], rtol=1e-5)
    assert (jnp.diff(result.temperatures) > 0).all()
    temperature = result.trace.temperature
    np.testing.assert_array_equal(temperature[3:], np.broadcast_to(result.temperatures, (5, 6)))
    assert (temperature[0] != temperature[1])[1:-1].all()


def test_a_ladder_keeps_its_order_where_nothing_is_exchanged():
    """A replica of NaN energy on the lower rungs, and energies that differ by far too much on the others."""
    steep = from_energy(lambda x: 1e6 * x, lambda rng_key, x: x)
    result = temper(jax.random.key(0), steep, 0.0, LADDER, 2_000, adapt_steps=2_000, exchange_every=10)
    np.testing.assert_allclose(result.temperatures, LADDER, rtol=1e-5)  # all energies are equal
    nan = from_energy(lambda x: jnp.nan * x, lambda rng_key, x: x)
    result = temper(jax.random.key(0), nan, 0.0, LADDER, 200, adapt_steps=200, exchange_every=10)
    np.testing.assert_allclose(result.temperatures, LADDER, rtol=1e-5)


@pytest.mark.slow
def test_a_replica_of_nan_energy_exchanges_nothing():
    """A replica never leaves NaN, so it must not move to another rung."""
    landscape = from_energy(lambda x: jnp.where(x == 3, jnp.nan, WELLS[x]), ring_move)
    result = temper(jax.random.key(0), landscape, jnp.int32(3), jnp.array([0.5, 5.0]), 2_000)
    assert float(result.exchange_share[0]) == 0 and int(result.num_accepted.sum()) == 0


def test_resampling_takes_a_population_to_the_next_temperature():
    """There are too few steps to reach the new distribution without resampling."""
    members, hot, cold = 20_000, 2.0, 0.4
    start = jax.random.choice(jax.random.key(5), 6, (members,), p=jnp.asarray(boltzmann(WELLS, hot)))
    landscape = from_energy(lambda x: WELLS[x], ring_move)
    schedule = lambda step: jnp.where(step < 100, hot, cold)  # noqa: E731
    result = jax.jit(lambda key, x: population_anneal(key, landscape, x, schedule, 100))(
        jax.random.key(6), start.astype(jnp.int32)
    )
    shares = np.bincount(np.asarray(result.final), minlength=6) / members
    np.testing.assert_allclose(shares, boltzmann(WELLS, cold), atol=0.02)
    sizes = np.bincount(np.asarray(result.family), minlength=members)
    assert float(result.mean_square_family_size) == pytest.approx((sizes**2).sum() / members, rel=1e-5)
    assert 1.2 < float(result.mean_square_family_size) < 5


@pytest.mark.slow
def test_a_population_finds_the_lowest_well():
    landscape, start = from_energy(rugged, hop), jnp.linspace(-15, 15, 50)
    schedule = geometric_schedule(10.0, 0.05, 3_000)
    for chain_batch in (None, 1):
        result = population_anneal(jax.random.key(0), landscape, start, schedule, 3_000, chain_batch=chain_batch)
        assert float(result.best_energy) == pytest.approx(float(rugged(result.best)), rel=1e-4)
        assert float(result.best_energy) < float(rugged(jnp.linspace(5, 15, 10_001)).min()) + 0.1


@pytest.mark.slow
def test_a_population_remembers_a_best_that_it_dropped():
    """Heating favours high energies: the only member in the lowest well is dropped. One member starts at NaN."""
    wells = jnp.array([0.0, 5.0, 5.0, jnp.nan])
    landscape = from_energy(lambda x: wells[x], lambda key, x: x)
    start = jnp.array([3, 0] + [1] * 30)
    heating = lambda step: jnp.where(step < 100, 0.5, 50.0)  # noqa: E731
    result = population_anneal(jax.random.key(0), landscape, start, heating, 100)
    assert float(result.final_energy.min()) == 5.0
    assert float(result.best_energy) == 0.0 and int(result.best) == 0


@pytest.mark.slow
def test_a_population_outlives_a_schedule_that_ends_at_zero():
    start = jnp.arange(12) % 6
    result = population_anneal(jax.random.key(0), ring, start, linear_schedule(1.0, 0.0, 100), 100)
    np.testing.assert_array_equal(result.family, jnp.arange(12))


@pytest.mark.slow
def test_replicas_spread_over_devices_exchange_as_on_one():
    mesh = jax.make_mesh((2,), ("replicas",), axis_types=(jax.sharding.AxisType.Auto,))
    ladder, nowhere = jnp.geomspace(0.1, 10.0, 8), jax.sharding.PartitionSpec()

    def spread(key):
        return temper(key, from_energy(rugged, hop), 0.0, ladder, 3_000, adapt_steps=1_000, axis_name="replicas")

    sharded = jax.jit(jax.shard_map(spread, mesh=mesh, in_specs=nowhere, out_specs=nowhere, check_vma=False))
    alone = temper(jax.random.key(5), from_energy(rugged, hop), 0.0, ladder, 3_000, adapt_steps=1_000)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), sharded(jax.random.key(5)), alone)
    assert alone.exchange_share.min() > 0.05
    with pytest.raises(InputError, match="temperatures, 7, must be a multiple of the number of devices, 2"):
        jax.shard_map(
            lambda key: temper(key, ring, 0, ladder[:7], 100, axis_name="replicas"),
            mesh=mesh,
            in_specs=nowhere,
            out_specs=nowhere,
        )(jax.random.key(0))


PROCESS = """
import sys
import jax
import numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from tests.annealing.test_tempering import sample_spread
final = sample_spread(2_000)
if jax.process_index() == 0:
    np.save(sys.argv[3], final)
"""


def sample_spread(chains):
    """The final positions of many runs of `temper`, with replicas spread over all devices, `[chains, rungs]`."""
    mesh = jax.make_mesh((2,), ("replicas",), axis_types=(jax.sharding.AxisType.Auto,))
    nowhere = jax.sharding.PartitionSpec()

    def sample(keys):
        one = partial(temper, landscape=ring, position=jnp.int32(0), temperatures=LADDER, num_steps=1_000)
        return jax.vmap(lambda key: one(key, axis_name="replicas").final)(keys)

    spread = jax.shard_map(sample, mesh=mesh, in_specs=nowhere, out_specs=nowhere, check_vma=False)
    keys = jax.jit(lambda: jax.random.split(jax.random.key(0), chains), out_shardings=NamedSharding(mesh, nowhere))
    return np.asarray(jax.jit(spread)(keys()))


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_replicas_spread_over_processes_sample_the_boltzmann_distribution(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    words = [[sys.executable, "-c", PROCESS, place, str(number), tmp_path / "final.npy"] for number in (0, 1)]
    environment = os.environ | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
        "JAX_NUM_CPU_DEVICES": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    processes = [subprocess.Popen(one, env=environment, stderr=subprocess.PIPE, text=True) for one in words]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    final = np.load(tmp_path / "final.npy")
    for rung, temperature in enumerate(LADDER.tolist()):
        check_visits(final[:, rung], temperature)
    np.testing.assert_array_equal(final, sample_spread(2_000))


@pytest.mark.slow
def test_many_chains_fit_inside_shard_map():
    mesh = jax.make_mesh((2,), ("keys",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("keys")

    def both(keys):
        tempered = temper(keys[0], ring, jnp.int32(0), jnp.array([0.1, 1.0]), 300, adapt_steps=200)
        population = population_anneal(keys[0], ring, jnp.arange(6), geometric_schedule(1.0, 0.1, 300), 300)
        return jnp.stack([tempered.best_energy, population.best_energy])[None]

    sharded = jax.jit(jax.shard_map(both, mesh=mesh, in_specs=spec, out_specs=spec))
    assert sharded(jax.random.split(jax.random.key(0))).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.slow
def test_proposals_that_cannot_be_judged_are_counted():
    landscape = from_energy(lambda x: jnp.where(x == 3, jnp.nan, WELLS[x]), ring_move)
    tempered = temper(jax.random.key(0), landscape, jnp.int32(0), LADDER, 200)
    assert (tempered.num_not_finite > 0).all() and tempered.num_not_finite.shape == (4,)
    assert temper(jax.random.key(0), ring, jnp.int32(0), LADDER, 200).num_not_finite.tolist() == [0] * 4

    def schedule(step):
        return jnp.where(step < 100, 1.0, jnp.nan)

    population = population_anneal(jax.random.key(0), ring, jnp.arange(6), schedule, 200)
    assert population.num_not_finite.tolist() == [100] * 6


def test_a_population_takes_a_number_as_its_temperature():
    members = jnp.arange(12) % 6
    by_number = population_anneal(jax.random.key(0), ring, members, 0.5, 200)
    by_schedule = population_anneal(jax.random.key(0), ring, members, constant_schedule(0.5), 200)
    jax.tree.map(np.testing.assert_array_equal, by_number, by_schedule)
    np.testing.assert_array_equal(by_number.family, jnp.arange(12))


def quadratic(x, target):
    return ((x - target) ** 2).sum()


def normal_move(rng_key, x):
    return x + jax.random.normal(rng_key, x.shape, x.dtype)


def both(rng_key, dtype=jnp.float32, num_steps=1_000):
    """The results of replica exchange and population annealing on a quadratic in two dimensions."""
    keys = jax.random.split(rng_key)
    landscape, data = from_energy(quadratic, normal_move), (jnp.array([1.0, 2.0], dtype),)
    start, ladder = jnp.zeros(2, dtype), np.geomspace(0.01, 1.0, 4)
    return (
        temper(keys[0], landscape, start, ladder, num_steps, data, adapt_steps=num_steps // 2),
        population_anneal(
            keys[1],
            landscape,
            jnp.broadcast_to(start, (6, 2)),
            geometric_schedule(1.0, 0.01, 1_000),
            num_steps,
            data,
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_float64_positions_promote_nothing(dtype):
    with x64(), strict():
        for result in both(jax.random.key(0), dtype):
            assert result.best.dtype == result.best_energy.dtype == result.final_energy.dtype == dtype
            assert result.best_energy == ((result.best - jnp.array([1.0, 2.0], dtype)) ** 2).sum() < 0.1
            for leaf in jax.tree.leaves(result._replace(best=0, best_energy=0, final=0, final_energy=0))[4:]:
                assert leaf.dtype in (jnp.float32, jnp.int32)


@pytest.mark.slow
def test_no_key_is_used_twice():
    expected = both(jax.random.key(0))
    with jax.debug_key_reuse(True):
        jax.tree.map(np.testing.assert_array_equal, both(jax.random.key(0)), expected)
        jax.jit(both)(jax.random.key(0))


@pytest.mark.slow
def test_no_steps_are_made_without_jit():
    with jax.disable_jit():
        for result in both(jax.random.key(0), num_steps=0):
            assert result.best_energy == 5 and not result.num_accepted.any()


@pytest.mark.slow
def test_no_nan_is_computed_on_the_way():
    """A schedule that ends at 0 divides by 0, and the shares of an adapted ladder divide by counts."""
    with jax.debug_nans(True):
        assert both(jax.random.key(0))[0].best_energy < 0.1
        end = population_anneal(jax.random.key(0), ring, jnp.arange(6), linear_schedule(1.0, 0.0, 200), 300)
        assert end.best_energy == 0


def test_bad_input_is_refused():
    for ladder in (0.1, jnp.array([0.1]), jnp.ones((2, 2))):
        with pytest.raises(InputError, match=r"temperatures must have the shape \[rungs\], with at least 2"):
            temper(jax.random.key(0), ring, 0, ladder, 100)
    for ladder in (jnp.array([1.0, 0.1]), jnp.array([0.0, 1.0]), jnp.array([0.1, jnp.inf])):
        with pytest.raises(InputError, match="temperatures must be above 0, finite and rising, not"):
            temper(jax.random.key(0), ring, 0, ladder, 100)
    for ladder in (["a", "b"], [[1.0, 2.0], [3.0]]):
        with pytest.raises(InputError, match="temperatures must be an array of numbers, not list"):
            temper(jax.random.key(0), ring, 0, ladder, 100)
    for ladder in ([1.0, 1.0 + 1e-12], [1e-60, 1.0], [1.0, 1e60], [0.1, np.nan]):  # in float32
        with pytest.raises(InputError, match="temperatures must be above 0, finite and rising, not"):
            temper(jax.random.key(0), ring, 0, ladder, 100)
    for chain_batch in (0, -1, 1.5, "all"):
        message = "chain_batch must be a whole number of at least 1, or None for all, not"
        with pytest.raises(InputError, match=message):
            temper(jax.random.key(0), ring, 0, LADDER, 100, chain_batch=chain_batch)
        with pytest.raises(InputError, match=message):
            population_anneal(jax.random.key(0), ring, jnp.arange(6), 1.0, 100, chain_batch=chain_batch)
    with pytest.raises(InputError, match="num_steps must be a whole number from 0 to 2147483647, not -5"):
        population_anneal(jax.random.key(0), ring, jnp.arange(6), 1.0, -5)
    for positions in ((jnp.arange(4), jnp.arange(5)), (jnp.arange(4), 0), jnp.int32(0)):
        with pytest.raises(InputError, match=r"leading axis \[members\] of at least 2, the same in each array"):
            population_anneal(jax.random.key(0), ring, positions, 1.0, 100)
    for adapt_steps in (101, -1, 50.0):
        with pytest.raises(
            InputError, match=r"adapt_steps must be a whole number from 0 to 100 \(num_steps\), not"
        ):
            temper(jax.random.key(0), ring, 0, jnp.array([0.1, 1.0]), 100, adapt_steps=adapt_steps)
    for exchange_every in (0, 1.5):
        with pytest.raises(InputError, match="exchange_every must be a whole number from 1 to 2147483647, not"):
            temper(jax.random.key(0), ring, 0, LADDER, 100, exchange_every=exchange_every)
    for trace_every in (50, 150):
        message = f"trace_every must be a multiple of exchange_every, 100, or 0 for no trace, not {trace_every}"
        with pytest.raises(InputError, match=message):
            temper(jax.random.key(0), ring, 0, LADDER, 100, trace_every=trace_every)
    with pytest.raises(InputError, match="num_steps must be a whole number from 0 to 21474836, not 21474837"):
        temper(jax.random.key(0), ring, 0, LADDER, 21474837, exchange_every=1)
    with pytest.raises(InputError, match=r"leading axis \[members\] of at least 2"):
        population_anneal(jax.random.key(0), ring, jnp.zeros(1, jnp.int32), geometric_schedule(1.0, 0.1, 100), 100)
