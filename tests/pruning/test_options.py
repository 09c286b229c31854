"""Options of annealing: what they refuse, by which names, and the plain numbers that they hold."""

import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.pruning.options import Options, check_options, samples_for, uses_gradients
from tests.conftest import refusal


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "sine"}, "NAME(activation) must be one of relu, tanh, gelu, not 'sine'"),
        ({"move": ["uniform"]}, "NAME(move) must be one of saliency, informed, uniform, not ['uniform']"),
        ({"schedule": "exponential"}, "NAME(schedule) must be one of geometric, linear"),
        ({"nudge_share": 1}, "NAME(nudge_share) must be a finite number of at least 0 and below 1, not 1"),
        (
            {"nudge_share": 0.1, "energy": "error_rate"},
            "NAME(nudge_share) above 0 needs a derivative, which NAME(energy) 'error_rate' does not have",
        ),
        ({"move": "informed", "energy": "error_rate"}, "NAME(move) 'informed' needs a derivative"),
        (
            {"logit_scale": 0, "schedule": "linear"},
            "NAME(logit_scale) must be a finite number above 0, or None to calibrate it, not 0",
        ),
        ({"temperature_end": 0.0}, "NAME(temperature_end) must be a finite number above 0"),
    ],
)
def test_wrong_options_are_refused_by_the_names_that_the_user_knows(options, message):
    with refusal(message):
        check_options(Options(**options), lambda name: f"NAME({name})")


def test_numbers_become_plain_and_zero_suits_all_schedules_but_the_geometric():
    given = Options(schedule="linear", temperature_start=jnp.float32(0.5), temperature_end=np.int64(0))
    found = check_options(given)
    assert type(found.temperature_start) is float and type(found.temperature_end) is int
    assert (found.temperature_start, found.temperature_end, found.logit_scale) == (0.5, 0, None)
    assert hash(found) == hash(check_options(found))


def test_derivatives_are_taken_by_informed_swaps_and_nudges():
    assert [uses_gradients(Options(move=move)) for move in ("saliency", "informed")] == [False, True]
    assert uses_gradients(Options(nudge_share=0.1))


def test_more_branches_are_annealed_on_more_samples():
    assert samples_for(400, "informed") == 2 * samples_for(100, "informed") == 4 * samples_for(400, "uniform")
