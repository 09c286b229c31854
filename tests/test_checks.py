"""The checks of settings and arguments: accepted values, refused values, bounds and messages."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import InputError
from sa_jax.checks import choice, number, whole


def refused(check, *arguments, **options):
    """The message with which a check refuses a value."""
    with pytest.raises(InputError) as error:
        check(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), jnp.int32(3), 10**30])
def test_whole_accepts_integers_of_all_types(value):
    checked = whole("steps", value)
    assert type(checked) is int and checked == value


@pytest.mark.parametrize(
    "value",
    [3.0, np.float32(3), "3", None, True, np.True_, math.nan, [3], np.array([3]), jnp.array([3]), 3 + 0j]
    + [np.array(3.0), np.array(True), jnp.float32(3), jnp.bool_(True)],
)
def test_whole_refuses_other_values(value):
    assert refused(whole, "steps", value) == f"steps must be a whole number of at least 0, not {value!r}"


@pytest.mark.parametrize(("value", "fits"), [(0, False), (1, True), (5, True), (6, False), (np.int8(-1), False)])
def test_whole_includes_both_bounds(value, fits):
    if fits:
        assert whole("steps", value, 1, 5) == value
    else:
        assert refused(whole, "steps", value, 1, 5) == f"steps must be a whole number from 1 to 5, not {value!r}"


@pytest.mark.parametrize("check", [whole, number])
def test_traced_values_and_endless_ones_are_refused_in_a_line(check):
    def traced(value):
        message = refused(check, "steps", value)
        assert message.endswith("not a traced value: pass it as a static argument")
        return value

    jax.jit(traced)(3)
    assert "digits" in refused(check, "steps", -(10**5000))


@pytest.mark.parametrize("check", [whole, number])
def test_long_values_are_cut(check):
    for value in (np.arange(1_000), -(10**400)):
        message = refused(check, "steps", value)
        assert message.endswith("...") and len(message) < 300


def test_whole_names_what_else_is_allowed():
    message = refused(whole, "steps", -1, otherwise=", or None to choose it")
    assert message == "steps must be a whole number of at least 0, or None to choose it, not -1"


@pytest.mark.parametrize("value", [3, 0.5, -1e299, np.int64(3), np.float64(0.5), np.array(0.5), jnp.float32(0.5)])
def test_number_accepts_finite_numbers_of_all_types(value):
    checked = number("share", value)
    assert type(checked) in (int, float) and checked == value


def test_number_keeps_whole_numbers_whole():
    assert type(number("share", 3)) is int and type(number("share", np.int64(3))) is int


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        np.float32(np.nan),
        jnp.float32(jnp.inf),
        True,
        np.True_,
        "0.5",
        None,
        [0.5],
        np.array([0.5]),
        0.5 + 0j,
    ],
    ids=lambda value: str(value)[:10],
)
def test_number_refuses_other_values(value):
    assert refused(number, "share", value) == f"share must be a finite number, not {value!r}"


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "text"),
    [
        ({"above": 0}, [1e-30, 1], [0, -1], " above 0"),
        ({"least": 0}, [0, 1], [-1e-30], " of at least 0"),
        ({"below": 1}, [-5, 0.999], [1, 2], " below 1"),
        ({"most": 1}, [-5, 1], [1.001], " at most 1"),
        ({"above": 0, "most": 1}, [0.5, 1], [0, 1.5], " above 0 and at most 1"),
        ({"least": 0, "below": 0.5}, [0, 0.25], [-1, 0.5], " of at least 0 and below 0.5"),
    ],
)
def test_number_keeps_its_bounds(bounds, inside, outside, text):
    for value in inside:
        assert number("share", value, **bounds) == value
    for value in outside:
        message = refused(number, "share", value, **bounds)
        assert message == f"share must be a finite number{text}, not {value!r}"


def test_number_names_what_else_is_allowed():
    message = refused(number, "scale", 0, above=0, otherwise=", or None to calibrate it")
    assert message == "scale must be a finite number above 0, or None to calibrate it, not 0"


def test_choice_accepts_the_allowed_words():
    assert choice("move", "uniform", ("uniform", "informed")) == "uniform"
    assert choice("move", "informed", iter(("uniform", "informed"))) == "informed"
    assert choice("move", np.str_("uniform"), {"uniform": 1}) == "uniform"


@pytest.mark.parametrize("value", ["jump", "", "Uniform", "uni", None, 1, ["uniform"]])
def test_choice_refuses_other_values(value):
    message = refused(choice, "move", value, ("uniform", "informed"))
    assert message == f"move must be one of uniform, informed, not {value!r}"
