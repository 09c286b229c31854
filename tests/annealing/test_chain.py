"""`anneal` and its steps, mostly on small landscapes without a neural network."""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sa_jax import InputError, anneal, from_energy, geometric_schedule
from sa_jax.annealing import chain as module
from sa_jax.landscapes.mlp import masked_mlp
from sa_jax.moves.uniform import uniform_swap
from sa_jax.networks import masks, mlp
from sa_jax.networks.energies import cross_entropy
from sa_jax.testing import boltzmann, check_detailed_balance, visits
from tests.conftest import refusal
from tests.settings import strict, x64

WELLS = jnp.array([0.3, 0.0, 0.9, 0.5, 1.4, 0.2])


def ring_energy(x):
    return WELLS[x]


def ring_move(rng_key, x):
    return (x + jnp.where(jax.random.bernoulli(rng_key), 1, -1)) % WELLS.size


def lopsided_move(rng_key, x):
    """Goes up with probability 0.8, and states the ratio."""
    up = jax.random.bernoulli(rng_key, 0.8)
    return (x + jnp.where(up, 1, -1)) % WELLS.size, jnp.where(up, jnp.log(0.25), jnp.log(4.0))


ring = from_energy(ring_energy, ring_move)


@pytest.mark.slow
@pytest.mark.parametrize("move", [ring_move, lopsided_move])
def test_fixed_temperature_visits_the_boltzmann_distribution(move):
    landscape = from_energy(ring_energy, move)
    check_detailed_balance(
        jax.random.key(3), landscape, jnp.arange(6), (), 0.4, 20_000, num_chains=1, num_samples=20_000
    )


@pytest.mark.slow
def test_a_wrong_proposal_ratio_is_noticed():
    def dishonest(rng_key, x):
        return lopsided_move(rng_key, x)[0]

    # The wells are asymmetric, so that a drift along the ring shows.
    counts = visits(jax.random.key(3), from_energy(ring_energy, dishonest), jnp.arange(6), (), 0.4, 1, 20_000)
    expected = 20_000 * boltzmann(WELLS, 0.4)
    assert ((counts - expected) ** 2 / expected).sum() > 100


def test_acceptance_rule():
    nan, inf = math.nan, math.inf

    def accepts(change, ratio, temperature, u):
        numbers = map(jnp.float32, (change, ratio, temperature, math.log(u)))
        return bool(module.accept(*numbers))

    assert accepts(1.0, 0.0, 1.0, 0.36) and not accepts(1.0, 0.0, 1.0, 0.37)
    assert accepts(1.0, 1.0, 1.0, 1.0) and not accepts(0.0, -1.0, 1.0, 0.4)
    assert accepts(-1e-9, 0.0, 0.0, 1.0) and accepts(0.0, 0.0, 0.0, 1.0) and not accepts(1e-9, 9.0, 0.0, 1e-30)
    assert not accepts(nan, 0.0, 1.0, 1e-30) and not accepts(nan, 0.0, 0.0, 1e-30)
    assert not accepts(-1.0, -inf, 1.0, 1e-30) and not accepts(-1.0, -inf, 0.0, 1e-30)
    assert not accepts(inf, 0.0, 1.0, 1e-30) and accepts(-inf, 0.0, 1.0, 1.0)


def test_nan_energies_are_never_entered():
    landscape = from_energy(lambda x: jnp.where(x == 3, jnp.nan, WELLS[x]), ring_move)
    result = jax.jit(lambda k: anneal(k, landscape, jnp.int32(0), 10.0, 500, trace_every=1))(jax.random.key(0))
    assert np.isfinite(result.trace.energy).all() and int(result.num_accepted) > 100
    assert 0 < int(result.num_not_finite) <= 500 - int(result.num_accepted)
    parallel_proposals = jax.jit(lambda k: anneal(k, landscape, jnp.int32(0), 10.0, 500, parallel_proposals=3))(
        jax.random.key(0)
    )
    assert parallel_proposals.num_not_finite == result.num_not_finite


def test_result_keeps_best_and_final_apart(rng_key):
    result = anneal(rng_key, ring, jnp.int32(4), 5.0, 300, trace_every=1)
    assert int(result.best) == 1 and float(result.best_energy) == 0.0
    assert float(result.final_energy) == float(WELLS[result.final])
    assert float(result.best_energy) == float(result.trace.best_energy[-1]) == float(result.trace.energy.min())
    assert int(result.num_accepted) == int(result.trace.num_accepted[-1])


@pytest.mark.slow
def test_trace_is_opt_in_and_every_n_steps(rng_key):
    schedule = geometric_schedule(2.0, 0.1, 250)
    assert anneal(rng_key, ring, 4, schedule, 250).trace is None
    every = anneal(rng_key, ring, 4, schedule, 250, trace_every=1).trace
    some = anneal(rng_key, ring, 4, schedule, 250, trace_every=7).trace
    assert some.step.tolist() == list(range(7, 251, 7)) and every.step.shape == (250,)
    for name in some._fields:
        np.testing.assert_array_equal(getattr(some, name), getattr(every, name)[6::7])
    np.testing.assert_allclose(every.temperature, [schedule(step) for step in range(250)], rtol=1e-6)


def test_greedy_at_temperature_zero(rng_key):
    trace = anneal(rng_key, ring, 4, 0.0, 200, trace_every=1).trace
    assert (np.diff(trace.energy) <= 0).all() and trace.energy[-1] == 0.2  # the nearest well, not the lowest


def test_zero_steps_return_the_start(rng_key):
    result = anneal(rng_key, ring, 4, 1.0, 0)
    assert int(result.best) == int(result.final) == 4 and int(result.num_accepted) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_chunks_change_no_bit(rng_key):
    def energy(x, centre):
        return ((x - centre) ** 2).sum() + jnp.cos(9 * x).sum()

    landscape = from_energy(energy, lambda key, x: x + 0.3 * jax.random.normal(key, x.shape))
    data = (jnp.arange(3.0),)
    schedule = geometric_schedule(1.0, 0.01, 1_000)
    whole = jax.jit(lambda key: anneal(key, landscape, jnp.zeros(3), schedule, 1_000, data))(rng_key)
    chunk = jax.jit(lambda state, first: module.run(rng_key, landscape, state, schedule, first, 200, data)[0])
    state = module.init(landscape, jnp.zeros(3), data)
    for first_step in range(0, 1_000, 200):
        state = chunk(state, first_step)
    np.testing.assert_array_equal(state.walk.position, whole.final)
    np.testing.assert_array_equal(state.best, whole.best)
    assert state.best_energy == whole.best_energy and state.num_accepted == whole.num_accepted
    assert chunk._cache_size() == 1


def waves(x, centre):
    return ((x - centre) ** 2).sum() + jnp.cos(9 * x).sum()


WAVES = from_energy(waves, lambda key, x: x + 0.3 * jax.random.normal(key, x.shape))
COOLING = geometric_schedule(1.0, 0.01, 700)


def in_waves(rng_key, num_steps, resume=None, **options):
    return anneal(rng_key, WAVES, jnp.zeros(3), COOLING, num_steps, (jnp.arange(3.0),), resume=resume, **options)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("keep_state", [False, True])
def test_a_resumed_chain_changes_no_bit(rng_key, keep_state):
    """Twice, into the middle of a block, and with steps after a refresh."""
    landscape = WAVES._replace(refresh_steps=200)
    walk = partial(
        anneal, rng_key, landscape, jnp.zeros(3), COOLING, data=(jnp.arange(3.0),), trace_every=50,
        keep_state=keep_state,
    )  # fmt: skip
    whole, parts = walk(num_steps=650), [walk(num_steps=200)]
    for num_steps in (100, 350):
        parts.append(walk(num_steps=num_steps, resume=parts[-1]))
    traces = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(part.trace for part in parts))
    jax.tree.map(np.testing.assert_array_equal, parts[-1]._replace(trace=traces), whole)
    assert [int(part.num_steps) for part in parts] == [200, 300, 650]
    assert (parts[-1].state is not None) == keep_state


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_resumes_under_jit_and_vmap(rng_key):
    @jax.jit
    def further(key, result):
        return in_waves(key, 200, result)

    first = in_waves(rng_key, 300)
    jax.tree.map(np.testing.assert_array_equal, further(rng_key, first), in_waves(rng_key, 500))
    keys = jax.random.split(rng_key, 3)
    first = jax.vmap(lambda key: in_waves(key, 300))(keys)
    found = jax.jit(jax.vmap(lambda key, result: in_waves(key, 200, result)))(keys, first)
    expected = jax.jit(jax.vmap(lambda key: in_waves(key, 500)))(keys)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert found.num_steps.tolist() == [500] * 3


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_resumes_on_the_landscape_of_a_network(rng_key):
    kernels = (jax.random.normal(jax.random.key(1), (6, 9)), jax.random.normal(jax.random.key(2), (9, 3)))
    network = mlp.Network(kernels, (None, None))
    data = jax.random.normal(jax.random.key(4), (6, 30)), jnp.arange(30) % 3
    mask = masks.random(jax.random.key(5), network.total, network.total // 4)
    landscape = masked_mlp(network, uniform_swap(), cross_entropy())
    walk = partial(anneal, rng_key, landscape, mask, 0.1, data=data)
    first = walk(num_steps=300, keep_state=True)
    resumed = walk(num_steps=300, resume=first)
    jax.tree.map(np.testing.assert_array_equal, resumed, walk(num_steps=600))
    with refusal("resume needs the state of this landscape: make the result with keep_state=True"):
        walk(num_steps=300, resume=resumed)


def test_what_cannot_be_resumed_is_refused(rng_key):
    for num_steps, better in ((30, 100), (130, 100), (160, 200)):
        result = in_waves(rng_key, num_steps)
        with refusal(
            f"resume needs a result after a multiple of 100 steps, not {num_steps}", f"num_steps={better}"
        ):
            in_waves(rng_key, 100, result)
    for other in (chain_state := module.init(WAVES, jnp.zeros(3), (jnp.zeros(3),)), 100):
        name = type(chain_state).__name__ if other is chain_state else "int"
        with refusal(f"resume must be an AnnealResult, as anneal returns it, not {name}"):
            in_waves(rng_key, 100, other)
    result = in_waves(rng_key, 0)._replace(num_steps=2**31 - 48)
    with refusal("num_steps must be a whole number from 0 to 47, after the 2147483600 of resume, not 100"):
        in_waves(rng_key, 100, result)
    assert in_waves(rng_key, 100, in_waves(rng_key, 0)).num_steps == 100


@pytest.mark.parametrize("first_step", [50, 1, -100, 100.0, None, jnp.int32(150)])
def test_a_first_step_within_a_block_is_refused(rng_key, first_step):
    message = (
        "first_step must be a multiple of 100, not" if first_step in (50, 1, 150) else "whole number from 0 to"
    )
    for num_steps in (100, 30):
        with refusal(message):
            module.run(rng_key, ring, module.init(ring, 4), 1.0, first_step, num_steps)


def test_a_run_takes_the_arguments_of_anneal(rng_key):
    state = module.run(rng_key, ring, module.init(ring, 4), 0.5, np.int64(0), 250)[0]
    assert state.num_accepted == anneal(rng_key, ring, 4, 0.5, 250).num_accepted
    for options, message in (
        ({"num_steps": -1}, "num_steps must be a whole number from 0"),
        ({"trace_every": 1.5}, "trace_every must be a whole number of at least 0"),
        ({"parallel_proposals": 0}, "parallel_proposals must be a whole number of at least 1"),
        ({"schedule": "cold"}, "schedule must be a number or a callable"),
    ):
        with refusal(message):
            module.run(**{"num_steps": 10, "schedule": 1.0, **options}, rng_key=rng_key, landscape=ring,
                       state=module.init(ring, 4), first_step=0)  # fmt: skip


@pytest.mark.parametrize("parallel_proposals", [1, 4])
@pytest.mark.parametrize("bad", [math.nan, -1.0, -math.inf])
def test_temperatures_that_are_nan_or_negative_are_counted_and_greedy(rng_key, bad, parallel_proposals):
    def temperature_until_60(value):
        def schedule(step):
            return jnp.where(step < 60, 1.0, value)

        return schedule

    def walk(value):
        return anneal(
            rng_key, ring, 4, temperature_until_60(value), 250, (), 1, parallel_proposals=parallel_proposals
        )

    found, greedy = walk(bad), walk(0.0)
    assert found.num_not_finite == 190 and greedy.num_not_finite == 0
    np.testing.assert_array_equal(found.trace.energy, greedy.trace.energy)


def test_a_step_is_counted_once(rng_key):
    """Its energy change is NaN, and so is its temperature."""
    landscape = from_energy(lambda x: jnp.where(x == 4, 0.0, jnp.nan), ring_move)
    assert anneal(rng_key, landscape, 4, lambda step: jnp.nan * step, 100).num_not_finite == 100


@pytest.mark.slow
def test_a_shorter_run_is_a_prefix(rng_key):
    long = anneal(rng_key, ring, 4, 0.5, 250, trace_every=1).trace
    short = anneal(rng_key, ring, 4, 0.5, 130, trace_every=1).trace
    np.testing.assert_array_equal(short.energy, long.energy[:130])


@pytest.mark.slow
def test_composes_with_jit_vmap_and_scan(rng_key):
    keys = jax.random.split(rng_key, 3)
    single = [anneal(key, ring, 4, geometric_schedule(2.0, 0.1, 250), 250) for key in keys]

    @jax.jit
    def many(keys, position):
        return jax.vmap(lambda key: anneal(key, ring, position, geometric_schedule(2.0, 0.1, 250), 250))(keys)

    def in_scan(carry, key):
        return carry, anneal(key, ring, 4, geometric_schedule(2.0, 0.1, 250), 250)

    for parallel_proposals in (many(keys, 4), jax.lax.scan(in_scan, None, keys)[1]):
        assert parallel_proposals.best.tolist() == [int(result.best) for result in single]
        assert parallel_proposals.num_accepted.tolist() == [int(result.num_accepted) for result in single]
    positions = jax.vmap(lambda position: anneal(rng_key, ring, position, 0.0, 200).best)(jnp.arange(6))
    assert positions[jnp.array([1, 3, 5])].tolist() == [1, 3, 5]  # each already in a well
    assert set(positions.tolist()) == {1, 3, 5}


@pytest.mark.slow
@pytest.mark.parametrize("varying", ["key", "position", "data"])
def test_composes_with_shard_map(rng_key, varying):
    landscape = from_energy(lambda x, shift: WELLS[(x + shift) % 6], ring_move)
    mesh = jax.make_mesh((2,), ("chains",), axis_types=(jax.sharding.AxisType.Auto,))
    keys = jax.random.split(rng_key, 2)
    inputs = {"key": keys, "position": jnp.array([4, 2]), "data": jnp.array([0, 1])}
    specs = {name: PartitionSpec("chains") if name == varying else PartitionSpec() for name in inputs}
    inputs = {name: array if name == varying else array[0] for name, array in inputs.items()}

    def one(key, position, shift):
        shared = [jnp.ravel(leaf)[0] for leaf in (key, position, shift)]
        return jnp.atleast_1d(anneal(*shared[:1], landscape, shared[1], 0.5, 250, data=(shared[2],)).best_energy)

    sharded = jax.jit(
        jax.shard_map(one, mesh=mesh, in_specs=tuple(specs.values()), out_specs=PartitionSpec("chains"))
    )
    alone = [one(*(array[i] if name == varying else array for name, array in inputs.items()))[0] for i in range(2)]
    np.testing.assert_array_equal(sharded(*inputs.values()), alone)


def test_each_device_draws_masks_of_its_own(rng_key):
    mesh = jax.make_mesh((2,), ("chains",), axis_types=(jax.sharding.AxisType.Auto,))
    spec, keys = PartitionSpec("chains"), jax.random.split(rng_key, 2)

    def draw(keys):
        return jax.lax.map(lambda key: masks.random(key, 50, 7), keys)

    drawn = jax.jit(jax.shard_map(draw, mesh=mesh, in_specs=spec, out_specs=spec))(keys)
    np.testing.assert_array_equal(drawn, draw(keys))
    assert drawn.sum(1).tolist() == [7, 7]


def test_any_pytree_is_a_position(rng_key):
    position = {"x": 1.0, "pair": (jnp.zeros(2, jnp.int32), True), "key": jax.random.key(5)}

    def energy(position, target):
        return (position["x"] - target) ** 2 + jnp.abs(position["pair"][0]).sum()

    def move(key, position):
        return {**position, "x": position["x"] + jax.random.normal(key)}

    result = anneal(
        rng_key, from_energy(energy, move), position, geometric_schedule(1.0, 1e-3, 500), 500, data=(2.5,)
    )
    assert abs(float(result.best["x"]) - 2.5) < 0.1
    assert jax.tree.structure(result.best) == jax.tree.structure(position)


def test_temperature_may_be_traced(rng_key):
    energies = jax.jit(jax.vmap(lambda t: anneal(rng_key, ring, 4, t, 200).final_energy))(jnp.array([0.0, 0.5]))
    assert energies[0] == anneal(rng_key, ring, 4, 0.0, 200).final_energy


def test_data_may_be_numpy(rng_key):
    landscape = from_energy(lambda x, wells: wells[x], ring_move)
    result = anneal(rng_key, landscape, 4, 0.5, 200, data=(np.asarray(WELLS),))
    assert result.best_energy == anneal(rng_key, ring, 4, 0.5, 200).best_energy


def test_strict_promotion_of_dtypes(rng_key):
    def move(key, x):
        return (x + jnp.where(jax.random.bernoulli(key), jnp.int32(1), jnp.int32(-1))) % jnp.int32(6)

    with jax.numpy_dtype_promotion("strict"):
        result = anneal(rng_key, from_energy(ring_energy, move), jnp.int32(4), 0.5, 200)
    assert result.num_accepted.dtype == jnp.int32


def quadratic(x, target):
    return ((x - target) ** 2).sum()


def normal_move(rng_key, x):
    return x + jax.random.normal(rng_key, x.shape, x.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("parallel_proposals", [1, 3])
def test_float64_chains_promote_nothing(rng_key, dtype, parallel_proposals):
    landscape = from_energy(quadratic, normal_move)
    with x64(), strict():
        target = jnp.array([1.0, 2.0], dtype)
        result = anneal(
            rng_key, landscape, jnp.zeros(2, dtype), geometric_schedule(1.0, 0.001, 1_000), 1_000, (target,), 10,
            parallel_proposals,
        )  # fmt: skip
        assert result.best.dtype == result.best_energy.dtype == result.trace.energy.dtype == dtype
        assert result.best_energy == ((result.best - target) ** 2).sum() and result.best_energy < 0.1
        assert result.num_accepted.dtype == result.trace.step.dtype == result.num_not_finite.dtype == jnp.int32


@pytest.mark.slow
def test_the_precision_of_arrays_changes_no_random_number(rng_key):
    def move(key, x):
        return (
            x + jnp.where(jax.random.bits(key, dtype=jnp.uint8) > 127, jnp.int32(1), jnp.int32(-1))
        ) % jnp.int32(6)

    landscape = from_energy(lambda x: WELLS[x], move)
    expected = anneal(rng_key, landscape, jnp.int32(4), 0.5, 250, trace_every=50)
    with x64(), strict():
        found = anneal(rng_key, landscape, jnp.int32(4), 0.5, 250, trace_every=50)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.slow
def test_no_key_is_used_twice(rng_key):
    landscape = from_energy(quadratic, normal_move)

    def chunks(key):
        state = module.init(landscape, jnp.zeros(2), (jnp.ones(2),))
        for first_step in (0, 100):
            state, _ = module.run(key, landscape, state, 1.0, first_step, 150, (jnp.ones(2),))
        return state.num_accepted

    def together(key):
        return jax.vmap(lambda key: anneal(key, landscape, jnp.zeros(2), 1.0, 150, (jnp.ones(2),)))(
            jax.random.split(key, 3)
        )

    def ahead(key):
        return anneal(key, landscape, jnp.zeros(2), 1.0, 150, (jnp.ones(2),), parallel_proposals=3)

    for walk in (chunks, together, ahead):
        expected = walk(jax.random.key(3))
        with jax.debug_key_reuse(True):
            jax.tree.map(np.testing.assert_array_equal, walk(jax.random.key(3)), expected)
            jax.jit(walk)(jax.random.key(3))


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [0, 30])
def test_a_short_chain_runs_without_jit(rng_key, num_steps):
    expected = anneal(rng_key, ring, 4, 1.0, num_steps, trace_every=10)
    with jax.disable_jit():
        jax.tree.map(
            np.testing.assert_array_equal, anneal(rng_key, ring, 4, 1.0, num_steps, trace_every=10), expected
        )


def test_optax_schedules_fit(rng_key):
    import optax

    result = anneal(rng_key, ring, 4, optax.exponential_decay(2.0, 100, 0.5), 300, trace_every=100)
    np.testing.assert_allclose(
        result.trace.temperature, [2 * 0.5 ** ((s - 1) / 100) for s in (100, 200, 300)], 1e-5
    )


def test_calls_compile_once_for_new_keys_positions_and_data(rng_key):
    landscape = from_energy(lambda x, shift: WELLS[(x + shift) % 6], ring_move)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def jitted(key, position, shift):
        return anneal(key, landscape, position, 0.5, 200, data=(shift,)).best_energy

    energies = [float(jitted(jax.random.key(seed), seed, seed)) for seed in range(3)]
    assert energies == [0.0] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda key: anneal(key, ring, 0, 1.0, -1),
            "num_steps must be a whole number from 0 to 2147483647, not -1",
        ),
        (lambda key: anneal(key, ring, 0, 1.0, 2**31), "num_steps must be a whole number from 0 to 2147483647"),
        (lambda key: anneal(key, ring, 0, 1.0, 10.0), "num_steps must be a whole number"),
        (lambda key: anneal(key, ring, 0, 1.0, 10, trace_every=-2), "trace_every must be a whole number"),
        (lambda key: anneal(key, ring, 0, jnp.ones(3), 10), "schedule must be a number or a callable"),
        (lambda key: anneal(key, ring, 0, "cold", 10), "schedule must be a number or a callable"),
        (lambda key: anneal(key, ring, 0, 1.0, 10, data=WELLS), "data must be a tuple"),
        (lambda key: anneal(key, ring, 0, -1.0, 10), "temperature must be a finite number of at least 0, not -1"),
        (lambda key: anneal(key, ring, 0, 1.0, 10, parallel_proposals=0), "parallel_proposals must be a whole"),
    ],
)
def test_bad_input_is_named(rng_key, call, message):
    with pytest.raises(InputError, match=message):
        call(rng_key)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("parallel_proposals", [2, 5, 150])
def test_speculation_walks_the_very_same_chain(rng_key, parallel_proposals):
    """The energies of all steps agree bit for bit with the serial chain, also across refreshes."""
    schedule = geometric_schedule(2.0, 0.1, 250)
    landscape = ring._replace(refresh_steps=100)
    serial = anneal(rng_key, landscape, 4, schedule, 250, trace_every=1)
    ahead = anneal(rng_key, landscape, 4, schedule, 250, trace_every=1, parallel_proposals=parallel_proposals)
    assert 20 < serial.num_accepted < 230
    jax.tree.map(np.testing.assert_array_equal, serial, ahead)


@pytest.mark.slow
def test_speculation_on_the_landscape_of_a_network(rng_key):
    kernels = (jax.random.normal(jax.random.key(1), (6, 40)), jax.random.normal(jax.random.key(2), (40, 36)))
    network = mlp.Network((*kernels, jax.random.normal(jax.random.key(3), (36, 3))), (None,) * 3)
    data = jax.random.normal(jax.random.key(4), (6, 30)), jnp.arange(30) % 3
    landscape = masked_mlp(network, uniform_swap(), cross_entropy())
    mask = masks.random(jax.random.key(5), network.total, network.total // 4)
    walks = [
        jax.jit(
            partial(
                anneal, landscape=landscape, num_steps=450, trace_every=1, parallel_proposals=parallel_proposals
            )
        )(rng_key, position=mask, schedule=0.001, data=data)
        for parallel_proposals in (1, 4)
    ]
    assert 20 < walks[0].num_accepted < 430
    np.testing.assert_array_equal(walks[0].final, walks[1].final)
    np.testing.assert_array_equal(walks[0].trace.num_accepted, walks[1].trace.num_accepted)
    np.testing.assert_allclose(walks[0].trace.energy, walks[1].trace.energy, rtol=1e-5)
