"""The annealer's arguments: what is accepted, and the one line with which all else is refused."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import anneal, calibrate, from_energy
from sa_jax.annealing import inputs
from sa_jax.annealing.chain import init, run, speculate, step
from sa_jax.annealing.tempering import population_anneal, temper
from sa_jax.testing import check_detailed_balance, count_proposals, energies_of, visits
from tests.conftest import refusal

KEY, LADDER = jax.random.key(0), jnp.array([0.1, 1.0])
WELLS = np.array([0.3, 0.0, 0.9, 0.5], np.float32)

wells = from_energy(lambda x, wells: wells[x], lambda rng_key, x: jax.random.randint(rng_key, (), 0, 4))


def energies(data, position=1, members=None):
    """What each function that takes data makes of it, by name."""
    members = jnp.arange(3) if members is None else members
    state = init(wells, jnp.int32(1), (WELLS,))
    noise, log_u, temperature = KEY, jnp.float32(-1), jnp.float32(1)
    some = jax.tree.map(lambda leaf: leaf[None], (noise, log_u, temperature))
    return {
        "anneal": lambda: anneal(KEY, wells, position, 1.0, 100, data).best_energy,
        "init": lambda: init(wells, position, data).best_energy,
        "step": lambda: step(wells, state, noise, log_u, temperature, data).best_energy,
        "speculate": lambda: speculate(wells, state, *some, 1, data)[0].best_energy,
        "run": lambda: run(KEY, wells, state, 1.0, 0, 100, data)[0].best_energy,
        "landscape": lambda: jax.jit(lambda x: wells.init(x, data).energy)(1),
        "refresh": lambda: wells.refresh(state.walk, data).energy,
        "temper": lambda: temper(KEY, wells, position, LADDER, 100, data).best_energy,
        "population_anneal": lambda: population_anneal(KEY, wells, members, 1.0, 100, data).best_energy,
        "calibrate": lambda: calibrate(KEY, wells, position, data)[0],
        "energies_of": lambda: energies_of(wells, members, data),
        "count_proposals": lambda: count_proposals(KEY, wells, jnp.arange(4), data, num_draws=10).draws,
        "visits": lambda: visits(KEY, wells, jnp.arange(4), data, num_chains=2, num_samples=2).shape,
    }


FUNCTIONS = list(energies(()))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_data_that_is_not_a_tuple_is_refused_by_all(function):
    for data, described in (
        (WELLS, "float32[4]"),
        (jnp.asarray(WELLS)[None], "float32[1, 4]"),
        ({"wells": WELLS}, "dict"),
        (None, "None"),
        ("ab", "str"),
    ):
        with refusal(f"data must be a tuple, such as data=(x,), not {described}"):
            energies(data)[function]()


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS)
def test_numpy_arrays_of_any_layout_are_data(function):
    expected = energies((jnp.asarray(WELLS),))[function]()
    for array in (WELLS, WELLS.astype(">f4"), WELLS.astype(">f8"), read_only(WELLS), np.repeat(WELLS, 2)[::2]):
        np.testing.assert_array_equal(energies((array,))[function](), expected)


@pytest.mark.slow
def test_numpy_arrays_of_any_layout_are_positions():
    plain = np.arange(3, dtype=np.int32)
    for array in (plain.astype(">i4"), plain.astype(">i8"), read_only(plain), np.repeat(plain, 2)[::2]):
        for name in ("anneal", "init", "temper", "population_anneal", "calibrate", "energies_of"):
            there, here = ([array, plain][which] for which in (0, 1))
            np.testing.assert_array_equal(
                energies((WELLS,), there[1:2].reshape(()), there)[name](),
                energies((WELLS,), here[1], here)[name](),
            )
    ladder = np.array([0.1, 1.0], ">f8")
    assert temper(KEY, wells, 0, ladder, 100, (WELLS,)).best_energy == 0


def test_data_keeps_its_kind():
    """A landscape may read `data.wells`."""
    kind = namedtuple("kind", "wells")
    assert isinstance(inputs.as_data(kind(WELLS)).wells, jax.Array)
    assert type(inputs.as_data([WELLS])) is tuple
    assert inputs.as_data((2.5, None, "mean")) == (2.5, None, "mean")
    with refusal("data[0]['names'] must be an array of numbers, not <U1[1]"):
        inputs.as_data(({"names": np.array(["a"])},))


@pytest.mark.parametrize(
    ("position", "message"),
    [
        ("start", "position must be an array or a number, not str: leave it out of the position"),
        ({"x": 1.0, "activation": jax.nn.relu}, "position['activation'] must be an array or a number, not "),
        ([1.0, "a"], "position[1] must be an array or a number, not str"),
        (np.array(["a"]), "position must be an array or a number, not <U1[1]"),
        (10**30, "position must be an array or a number, not int"),
        (None, "position must be an array or a pytree of arrays, not None"),
        ((), "position must be an array or a pytree of arrays, not tuple"),
    ],
)
def test_a_position_of_other_things_than_arrays_is_refused_by_all(position, message):
    free = from_energy(lambda x: 0.0, lambda rng_key, x: x)
    for call in (
        lambda: free.init(position, ()),
        lambda: init(free, position),
        lambda: anneal(KEY, free, position, 1.0, 10),
        lambda: temper(KEY, free, position, LADDER, 10),
        lambda: population_anneal(KEY, free, position, 1.0, 10),
        lambda: calibrate(KEY, free, position),
        lambda: energies_of(free, position),
    ):
        with refusal(message):
            call()


def test_a_module_that_holds_its_activation_is_refused_and_its_arrays_are_a_position():
    equinox = pytest.importorskip("equinox")
    module = equinox.nn.MLP(2, 1, 3, 1, key=KEY)

    def energy(arrays, x, rest):
        return (equinox.combine(arrays, rest)(x) ** 2).sum()

    def move(rng_key, arrays):
        return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(rng_key, leaf.shape), arrays)

    landscape = from_energy(energy, move)
    with refusal("position.", "must be an array or a number, not "):
        anneal(KEY, landscape, module, 1.0, 10, (jnp.ones(2), module))
    arrays, rest = equinox.partition(module, equinox.is_array)
    result = anneal(KEY, landscape, arrays, 0.0, 50, (jnp.ones(2), rest))
    assert result.best_energy < landscape.init(arrays, (jnp.ones(2), rest)).energy


@pytest.mark.parametrize("key", [0, jnp.zeros(3), jax.random.split(KEY, 3), None, jnp.zeros((2, 2), jnp.uint32)])
def test_what_is_not_one_key_is_refused_by_all(key):
    for call in (
        lambda: anneal(key, wells, 0, 1.0, 10, (WELLS,)),
        lambda: run(key, wells, init(wells, 0, (WELLS,)), 1.0, 0, 10, (WELLS,)),
        lambda: temper(key, wells, 0, LADDER, 10, (WELLS,)),
        lambda: population_anneal(key, wells, jnp.arange(4), 1.0, 10, (WELLS,)),
        lambda: calibrate(key, wells, 0, (WELLS,)),
        lambda: check_detailed_balance(key, wells, jnp.arange(4), (WELLS,)),
        lambda: count_proposals(key, wells, jnp.arange(4), (WELLS,)),
        lambda: visits(key, wells, jnp.arange(4), (WELLS,)),
    ):
        with refusal(f"rng_key must be one key, such as jax.random.key(0), not {inputs.described(key)}"):
            call()


@pytest.mark.slow
@pytest.mark.parametrize("key", [KEY, jax.random.PRNGKey(0), np.array([0, 0], np.uint32)])
def test_keys_of_both_kinds_are_the_same(key):
    assert anneal(key, wells, 0, 1.0, 150, (WELLS,)).num_accepted == (
        anneal(KEY, wells, 0, 1.0, 150, (WELLS,)).num_accepted
    )
    assert temper(key, wells, 0, LADDER, 150, (WELLS,)).best_energy == 0
    assert population_anneal(key, wells, jnp.arange(4), 1.0, 150, (WELLS,)).best_energy == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: anneal(jnp.zeros(3), wells, KEY, 1.0, 10), "rng_key must be one key, such as jax.random.key(0)"),
        (
            lambda: anneal(wells, KEY, 0, 1.0, 10),
            "rng_key must be one key, such as jax.random.key(0), not Landscape",
        ),
        (lambda: anneal(KEY, 0, wells, 1.0, 10), "landscape must be a Landscape, such as from_energy(energy_fn, "),
        (lambda: anneal(KEY, abs, 0, 1.0, 10), "landscape must be a Landscape, such as from_energy(energy_fn, "),
        (
            lambda: temper(KEY, 0, wells, LADDER, 10),
            "landscape must be a Landscape, such as from_energy(energy_fn, ",
        ),
        (lambda: calibrate(KEY, 0, wells), "landscape must be a Landscape, such as from_energy(energy_fn, "),
        (
            lambda: anneal(KEY, wells, 0, 10, lambda step: 1.0),
            "num_steps must be a whole number from 0 to 2147483647",
        ),
        (
            lambda: from_energy(wells.draw, lambda x: x),
            "move_fn is called with 2 arguments, (rng_key, position), but",
        ),
        (lambda: from_energy(abs, 100), "move_fn must be a function of (rng_key, position), not int"),
        (
            lambda: anneal(KEY, from_energy(100, lambda rng_key, x: x), 0, 1.0, 10),
            "energy_fn must be a function of (position, *data), not int",
        ),
        (
            lambda: anneal(KEY, wells, 0, 1.0, 10),
            "energy_fn is called with 1 argument, (position, *data), but takes (",
        ),
        (
            lambda: anneal(KEY, wells, 0, lambda: 1.0, 10, (WELLS,)),
            "schedule is called with 1 argument, (step), but takes ()",
        ),
        (
            lambda: run(KEY, wells, 0, 1.0, 0, 10),
            "state must be an AnnealState, as init and run return it, not int",
        ),
    ],
)
def test_arguments_in_the_wrong_order_are_refused(call, message):
    with refusal(message):
        call()


def test_functions_that_do_not_tell_their_arguments_are_called():
    inputs.check_takes("energy_fn", dict.fromkeys, "(position, *data)", 1)
    inputs.check_takes("energy_fn", jax.jit(lambda x, y=1: x), "(position, *data)", 2)
    assert anneal(KEY, from_energy(jnp.sum, lambda rng_key, x: -x), jnp.ones(3), 0.0, 10).best_energy == -3


@pytest.mark.parametrize("value", [True, 3, 2.5, np.float64(1), np.array(2), jnp.bfloat16(2), jnp.int8(3)])
def test_real_numbers_of_all_types_are_scalars(value):
    assert inputs.as_scalar("the value of schedule", value).shape == ()


@pytest.mark.parametrize(
    ("value", "described"),
    [
        (None, "None"),
        ("a", "str"),
        (1j, "complex"),
        ([1.0], "list"),
        (jnp.ones(1), "float32[1]"),
        (abs, "builtin"),
    ],
)
def test_all_else_is_not_a_scalar(value, described):
    with refusal(f"the value of schedule must be a real scalar, not {described}"):
        inputs.as_scalar("the value of schedule", value)
