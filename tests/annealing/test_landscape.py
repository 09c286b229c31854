"""Landscapes made from an energy function and a move function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import InputError, anneal, from_energy
from sa_jax.annealing.landscape import batch_bound

WELLS = jnp.array([0.3, 0.0, 0.9, 0.5, 1.4, 0.2])


def up(rng_key, x):
    return (x + 1) % WELLS.size


ring = from_energy(lambda x, shift: WELLS[(x + shift) % 6], up)
DATA = (jnp.int32(2),)


def propose(landscape, position, data=()):
    """A proposal from a position, as the annealer makes it: the state, the move and the log ratio."""
    state = landscape.init(position, data)
    noise = landscape.draw(jax.random.key(0))
    return state, *landscape.propose(noise, state, jnp.float32(1.0))


def test_init_evaluates_the_position_with_the_data():
    state = ring.init(1, DATA)
    assert int(state.position) == 1 and float(state.energy) == 0.5


def test_a_symmetric_move_has_the_ratio_0():
    _, moved, log_q_ratio = propose(ring, 1, DATA)
    assert int(moved) == 2
    assert float(log_q_ratio) == 0.0 and log_q_ratio.dtype == jnp.float32


def test_a_stated_ratio_is_passed_on():
    landscape = from_energy(lambda x: WELLS[x], lambda rng_key, x: (up(rng_key, x), -1.5))
    _, moved, log_q_ratio = propose(landscape, 1)
    assert int(moved) == 2
    assert float(log_q_ratio) == -1.5 and log_q_ratio.dtype == jnp.float32


def test_a_pair_may_be_a_position():
    """A moved pair has the structure of the position, so its second value is not a ratio."""
    landscape = from_energy(lambda pair: pair[0] + pair[1], lambda rng_key, pair: (pair[1], pair[0]))
    _, moved, log_q_ratio = propose(landscape, (1.0, 2.0))
    assert [float(value) for value in moved] == [2.0, 1.0] and float(log_q_ratio) == 0.0
    landscape = from_energy(lambda pair: pair[0] + pair[1], lambda rng_key, pair: (pair, 0.5))
    assert float(propose(landscape, (1.0, 2.0))[2]) == 0.5


def test_delta_and_commit_agree_with_a_full_evaluation():
    state, moved, _ = propose(ring, 1, DATA)
    change, pending = ring.delta(state, moved, DATA)
    assert float(change) == pytest.approx(1.4 - 0.5)
    accepted = ring.commit(state, moved, pending, jnp.asarray(True))
    jax.tree.map(np.testing.assert_array_equal, accepted, ring.init(2, DATA))
    rejected = ring.commit(state, moved, pending, jnp.asarray(False))
    jax.tree.map(np.testing.assert_array_equal, rejected, state)


def test_refresh_takes_new_data_into_account():
    refreshed = ring.refresh(ring.init(1, DATA), (jnp.int32(0),))
    assert int(refreshed.position) == 1 and float(refreshed.energy) == 0.0


@pytest.mark.parametrize(("dtype", "expected"), [(jnp.int32, jnp.float32), (jnp.bfloat16, jnp.float32)])
def test_energies_are_floats_of_at_least_32_bits(dtype, expected):
    assert from_energy(lambda x: x.astype(dtype), up).init(jnp.int32(3), ()).energy.dtype == expected


def test_positions_are_not_weakly_typed():
    """A scan refuses a carry that is weakly typed before the first step and strongly typed after it."""
    state = from_energy(lambda x: x["a"] + x["b"], up).init({"a": 1.0, "b": 2}, ())
    leaves = jax.tree.leaves(state)
    assert not any(leaf.weak_type for leaf in leaves)
    assert [leaf.dtype for leaf in leaves] == [jnp.float32, jnp.int32, jnp.float32]


@pytest.mark.parametrize(
    ("energy_fn", "move_fn", "position", "message"),
    [
        (lambda x: x, up, jnp.ones(2), r"the value of energy_fn must be a real scalar, not float32\[2\]"),
        (lambda x: None, up, 0, "the value of energy_fn must be a real scalar, not None"),
        (lambda x: (WELLS[x], x), up, 0, "the value of energy_fn must be a real scalar, not tuple"),
        (lambda x: 1j * WELLS[x], up, 0, r"the value of energy_fn must be a real scalar, not complex64\[\]"),
        (
            lambda x: WELLS[x],
            lambda key, x: (x, jnp.zeros(1)),
            0,
            r"the log_q_ratio of move_fn must be a real scalar, not float32\[1\]",
        ),
        (lambda x: WELLS[x], lambda key, x: [x], 0, r"move_fn must return a position, PyTreeDef\(\*\), or"),
        (
            lambda x: WELLS[x],
            lambda key, x: (x, 0.0, 0.0),
            0,
            r"move_fn must return a position, .* or \(position, ",
        ),
        (
            lambda x: WELLS[x],
            lambda key, x: x + 0.5,
            0,
            r"move_fn must keep shape and dtype of position: int32\[\] became float32\[\]",
        ),
        (
            lambda x: x["a"].sum(),
            lambda key, x: {"a": x["a"][:1]},
            {"a": jnp.ones(2)},
            r"shape and dtype of position\['a'\]: float32\[2\] became float32\[1\]",
        ),
    ],
)
def test_bad_functions_are_named(rng_key, energy_fn, move_fn, position, message):
    with pytest.raises(InputError, match=message) as error:
        anneal(rng_key, from_energy(energy_fn, move_fn), position, 1.0, 10)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [jnp.bool_, jnp.int32, jnp.bfloat16, jnp.float32])
def test_energies_of_all_dtypes_pass_where_nothing_is_promoted(dtype, rng_key):
    landscape = from_energy(lambda x: x.astype(dtype), lambda key, x: -x)
    with jax.numpy_dtype_promotion("strict"):
        assert anneal(rng_key, landscape, jnp.int32(1), 1.0, 10).best_energy.dtype == jnp.float32


def test_a_loop_bound_is_the_largest_of_the_batch():
    numbers = jnp.array([2, 5, 3])
    assert int(batch_bound(numbers[0])) == 2
    assert jax.vmap(batch_bound)(numbers).tolist() == [5, 5, 5]
    nested = jax.vmap(jax.vmap(batch_bound))(jnp.array([[2, 5, 3], [1, 7, 0]]))
    assert nested.tolist() == [[7, 7, 7], [7, 7, 7]]
