"""Calls from outside of jit compile once, and never return what an earlier function would have returned."""

import functools
import gc
import traceback
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import anneal, calibrate, chain, from_energy, geometric_schedule, linear_schedule, tempering
from sa_jax.annealing import programs
from sa_jax.annealing.programs import MOST_PROGRAMS, call_compiled
from sa_jax.landscapes.mlp import masked_mlp
from sa_jax.moves import uniform_swap
from sa_jax.networks import masks, mlp
from sa_jax.networks.energies import cross_entropy
from tests.settings import x64


@pytest.fixture(autouse=True)
def no_programs():
    programs._programs.clear()


class Traces:
    """An energy that counts how often it is traced."""

    def __init__(self):
        self.count = 0

    def energy(self, x, target):
        self.count += 1
        return ((x - target) ** 2).sum()


def hop(rng_key, x):
    return x + jax.random.normal(rng_key, x.shape)


NUM_STEPS = 200
KEY = jax.random.key(0)
CALLS = {
    "anneal": lambda landscape, x, data: anneal(
        KEY, landscape, x, geometric_schedule(1.0, 0.1, NUM_STEPS), NUM_STEPS, data
    ),
    "chain": lambda landscape, x, data: [
        chain.run(KEY, landscape, chain.init(landscape, x, data), 1.0, first, 100, data) for first in (0, 100, 200)
    ],
    "calibrate": lambda landscape, x, data: calibrate(KEY, landscape, x, data),
    "temper": lambda landscape, x, data: tempering.temper(
        KEY, landscape, x, jnp.geomspace(0.1, 1.0, 3), NUM_STEPS, data
    ),
    "population_anneal": lambda landscape, x, data: tempering.population_anneal(
        KEY, landscape, jnp.stack([x, x]), linear_schedule(1.0, 0.1, NUM_STEPS), NUM_STEPS, data
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_traces_nothing(name):
    traces = Traces()
    call, landscape = CALLS[name], from_energy(traces.energy, hop)
    first = call(landscape, jnp.zeros(2), (jnp.ones(2),))
    count = traces.count
    again = call(landscape, jnp.zeros(2), (jnp.ones(2),))
    made_again = call(from_energy(traces.energy, hop), jnp.zeros(2), (jnp.ones(2),))
    other = call(landscape, jnp.ones(2), (np.zeros(2, np.float32),))
    assert traces.count == count
    jax.tree.map(np.testing.assert_array_equal, first, again)
    jax.tree.map(np.testing.assert_array_equal, first, made_again)
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, first, other)))
    call(landscape, jnp.zeros(3), (jnp.ones(3),))
    assert traces.count == 2 * count


def test_other_keys_and_temperatures_compile_nothing():
    traces = Traces()
    landscape = from_energy(traces.energy, hop)

    def solve(seed, schedule, num_steps=NUM_STEPS, trace_every=0):
        return anneal(jax.random.key(seed), landscape, jnp.zeros(2), schedule, num_steps, (0.5,), trace_every)

    solve(0, geometric_schedule(1.0, 0.1, 50))
    count = traces.count
    cold = solve(0, geometric_schedule(0.01, 0.001, 70))
    assert traces.count == count and cold.final_energy < 0.1
    assert solve(1, geometric_schedule(jnp.float32(1.0), 0.1, 50)).final_energy != cold.final_energy
    assert traces.count == count
    for number, others in enumerate(({"schedule": 0.5}, {"num_steps": 100}, {"trace_every": 100}), 2):
        solve(**{"seed": 0, "schedule": geometric_schedule(1.0, 0.1, 50)} | others)
        assert traces.count == number * count
    solve(1, 0.25)
    assert traces.count == 4 * count


def test_a_result_is_that_of_the_jitted_call():
    landscape = from_energy(lambda x: (x**2).sum() + jnp.cos(9 * x).sum(), hop)
    for make in (geometric_schedule, linear_schedule):
        solve = functools.partial(
            anneal, landscape=landscape, position=jnp.ones(3), schedule=make(1.0, 0.01, 999), num_steps=500
        )
        found, expected = solve(KEY, trace_every=1), jax.jit(functools.partial(solve, trace_every=1))(KEY)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


SCALE = 1.0


def scaled(x):
    return helper(x)


def helper(x):
    return SCALE * x


def test_a_variable_that_is_bound_to_another_value_counts(monkeypatch):
    """The variable of a function that the function calls, too, and the variables of a closure."""
    assert call_compiled(scaled, jnp.float32(2)) == 2
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert call_compiled(scaled, jnp.float32(2)) == 6
    monkeypatch.setitem(globals(), "helper", lambda x: -x)
    assert call_compiled(scaled, jnp.float32(2)) == -2

    def times(factor):
        return lambda x, more=factor: x * factor + more

    for factor in (2.0, 3, jnp.float32(4.0), np.float32(5.0), (6.0,)):
        value = factor[0] if isinstance(factor, tuple) else factor
        function = (lambda x, pair=factor: x * pair[0] + pair[0]) if isinstance(factor, tuple) else times(factor)
        assert call_compiled(function, jnp.float32(10)) == 11 * value
    options = {"factor": 2.0, "list": [1.0]}
    use = lambda x: options["factor"] * x + options["list"][0]  # noqa: E731
    assert call_compiled(use, jnp.float32(10)) == 21
    options["factor"] = 3.0
    assert call_compiled(use, jnp.float32(10)) == 31
    options["list"].append(2.0)
    options["list"][0] = 4.0
    assert call_compiled(use, jnp.float32(10)) == 34


def test_numbers_of_other_types_count():
    def dtype_of(number):
        return call_compiled(lambda x: x * number, jnp.int32(1)).dtype

    assert [dtype_of(number) for number in (1, 1.0, True)] == [jnp.int32, jnp.float32, jnp.int32]


@pytest.mark.parametrize("kind", ["list", "nonlocal"])
def test_a_function_may_count_its_traces(kind):
    traces, count = [], 0

    def listed(x):
        traces.append(1)
        return x + 1

    def counted(x):
        nonlocal count
        count += 1
        return x + 1

    function = listed if kind == "list" else counted
    for _ in range(3):
        call_compiled(function, jnp.zeros(2))
    assert len(traces) + count == 1


def test_a_function_may_call_itself_and_names_that_have_no_value():
    def power(x, n):
        return x * power(x, n - 1) if n else later + 1

    with pytest.raises(NameError):
        call_compiled(lambda x: power(x, 3), jnp.float32(2))
    later = 0
    assert call_compiled(lambda x: power(x, 3), jnp.float32(2)) == 8


def test_captured_arrays_are_arguments_and_are_freed():
    def solve():
        weights = jax.random.normal(KEY, (100, 100)) * 2
        call_compiled(lambda x: (weights @ x).sum(), jnp.ones(100))
        (program,) = programs._programs.values()
        assert any(get() is weights for get in program.captured)
        assert len(program.call.lower(weights, jnp.ones(100)).as_text()) < 2_000  # no constant
        return weakref.ref(weights)

    weights = solve()
    gc.collect()
    assert weights() is None and not programs._programs


def test_the_programs_that_were_used_last_are_kept():
    functions = [Traces() for _ in range(MOST_PROGRAMS + 5)]
    for function in functions:
        call_compiled(function.energy, jnp.zeros(2), 0.0)
        call_compiled(functions[0].energy, jnp.zeros(2), 0.0)
    assert len(programs._programs) == MOST_PROGRAMS
    for function in (functions[0], functions[-1], functions[1]):
        call_compiled(function.energy, jnp.zeros(2), 0.0)
    assert [functions[place].count for place in (0, -1, 1)] == [1, 1, 2]


def test_settings_of_jax_count():
    def mixed(x):
        return x + jnp.arange(3)

    call_compiled(mixed, jnp.ones(3))
    with jax.numpy_dtype_promotion("strict"), pytest.raises(Exception, match="strict"):
        call_compiled(mixed, jnp.ones(3))
    with x64():
        assert call_compiled(lambda: jnp.arange(3)).dtype == jnp.int64
    assert call_compiled(lambda: jnp.arange(3)).dtype == jnp.int32


def test_without_jit_the_function_is_called():
    traces = Traces()
    with jax.disable_jit():
        for _ in range(2):
            call_compiled(traces.energy, jnp.ones(2), 0.0)
    assert traces.count == 2 and not programs._programs


def test_traced_values_that_are_captured_are_not_kept():
    def outer(scale):
        return call_compiled(lambda x: scale * x, jnp.float32(2))

    for transform in (jax.jit, jax.vmap):
        for scale in (3.0, 5.0):
            assert (transform(outer)(jnp.full(2, scale)) == 2 * scale).all()
    assert not programs._programs


def test_pytrees_that_cannot_be_compared_are_called():
    @jax.tree_util.register_pytree_node_class
    class Labelled:
        def __init__(self, value, label):
            self.value, self.label = value, label

        def tree_flatten(self):
            return (self.value,), self.label

        @classmethod
        def tree_unflatten(cls, label, leaves):
            return cls(*leaves, label)

    assert call_compiled(lambda x: x.value + x.label[0], Labelled(jnp.float32(1), [2])) == 3


def test_an_error_shows_the_users_line():
    def broken_energy(x):
        return x @ jnp.ones(7)

    landscape = from_energy(broken_energy, hop)
    for _ in range(2):
        with pytest.raises(TypeError) as raised:
            anneal(KEY, landscape, jnp.zeros(2), 1.0, 100)
        assert "broken_energy" in {frame.name for frame in traceback.extract_tb(raised.value.__traceback__)}


@pytest.mark.parametrize("backend", ["xla", "auto"])
def test_the_landscape_of_a_network_compiles_once(backend):
    kernels = tuple(jax.random.normal(jax.random.key(seed), shape) for seed, shape in enumerate(((6, 5), (5, 3))))
    network = mlp.Network(kernels, (None, None))
    data = jax.random.normal(jax.random.key(4), (6, 30)), jnp.arange(30) % 3
    landscape = masked_mlp(network, uniform_swap(), cross_entropy(), backend=backend)
    mask = masks.random(jax.random.key(5), network.total, network.total // 4)
    results = [anneal(KEY, landscape, mask, 0.1, NUM_STEPS, data) for _ in range(2)]
    (program,) = programs._programs.values()
    assert program.call._cache_size() == 1
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert any(get() is kernels[0] for get in program.captured)
