"""Options of annealing: what they refuse, by which names, and the plain numbers that they hold."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.networks.patterns import NM, Block
from sa_jax.pruning import options as options_module
from sa_jax.pruning.options import MOVES, STARTS, Options, check_options, samples_for, score_steps, uses_gradients
from tests.conftest import refusal


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "sine"}, "NAME(activation) must be one of relu, tanh, gelu, not 'sine'"),
        ({"move": ["uniform"]}, "NAME(move) must be one of saliency, informed, uniform, not ['uniform']"),
        ({"schedule": "exponential"}, "NAME(schedule) must be one of geometric, linear"),
        ({"nudge_share": 1}, "NAME(nudge_share) must be a finite number of at least 0 and below 1, not 1"),
        (
            {"start": "scores"},
            "NAME(start) must be one of score_search, magnitude, saliency, random, not 'scores'",
        ),
        ({"estimates": "x"}, "NAME(estimates) must be one of forward, gradient, not 'x'"),
        (
            {"score_steps": 0},
            "NAME(score_steps) must be a whole number of at least 1, or None to choose it; for annealing alone "
            "choose another start, such as 'magnitude', not 0",
        ),
        ({"score_steps": 1e3}, "NAME(score_steps) must be a whole number of at least 1"),
        (
            {"logit_scale": 0, "schedule": "linear"},
            "NAME(logit_scale) must be a finite number above 0, or None to calibrate it, not 0",
        ),
        ({"pattern": NM(2, 4)}, "NM(kept=2, group=4) needs NAME(move) 'uniform', not 'informed'"),
        (
            {"pattern": NM(2, 4), "move": "uniform"},
            "NM(kept=2, group=4) needs another NAME(start) than 'score_search', such as 'magnitude'",
        ),
        ({"pattern": Block((2, 2), 0.5)}, "NAME(pattern) = '2x2:0.5': only patterns of single weights"),
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


def test_no_derivative_is_taken_unless_asked_for():
    for move, start, nudge_share in itertools.product(MOVES, STARTS, (0.0, 0.1)):
        options = Options(move=move, start=start, nudge_share=nudge_share)
        assert not uses_gradients(options)
        estimated = move == "informed" or start == "score_search" or nudge_share > 0
        assert uses_gradients(options._replace(estimates="gradient")) == estimated


def test_estimates_of_an_error_rate_are_allowed():
    for estimates in ("forward", "gradient"):
        options = Options(energy="error_rate", estimates=estimates, nudge_share=0.1)
        assert check_options(options) == options


def test_score_search_makes_few_steps_before_few_proposals(monkeypatch):
    monkeypatch.setattr(options_module, "FEWEST_STEPS", 700)
    monkeypatch.setattr(options_module, "STEPS_PER_PROPOSAL", 2)
    found = [score_steps(Options(), 1_000, 10, proposals) for proposals in (1, 349, 350, 10**6, None)]
    assert found == [2, 698, 700, 700, 700]
    # A given number is taken, whatever the number of proposals.
    assert [score_steps(Options(score_steps=800), 9, 9, proposals) for proposals in (1, 10**6)] == [800, 800]
    plain = check_options(Options(score_steps=np.int64(800)))
    assert type(plain.score_steps) is int and hash(plain) == hash(Options(score_steps=800))


def test_more_branches_are_annealed_on_more_samples():
    assert samples_for(400, "informed") == 2 * samples_for(100, "informed") == 4 * samples_for(400, "uniform")
