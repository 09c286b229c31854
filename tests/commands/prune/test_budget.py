"""The steps that fit into a wall time."""

import json
import time

import pytest

from sa_jax.commands.prune import budget
from sa_jax.commands.prune.budget import Speed, planned, steps_for
from tests.commands.run.runs import SEARCHED
from tests.conftest import refusal

FAST = Speed(search=100.0, anneal=1_000.0, seconds_before=10.0)


def test_steps_take_the_time_that_is_given():
    for seconds in (60, 600, 6_000):
        search, anneal = steps_for(FAST, seconds, 10_000)
        assert 0.7 * (seconds - 10) < search / 100 + anneal / 1_000 <= seconds - 10
    assert steps_for(FAST, 6_000, 10_000)[0] == 10_000
    assert steps_for(FAST._replace(search=0.0), 110, 10_000)[1] > 70_000  # without score search
    assert steps_for(FAST, 880, 10_000, probes=8) == steps_for(FAST, 110, 10_000)
    assert steps_for(FAST._replace(anneal=1e9), 600, 200)[1] < 2**31


def plan(folder, minutes, overwrite=False, speed=FAST):
    messages = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(budget, "measure", lambda config: speed)
        where = minutes, time.monotonic() + 60 * (minutes or 0), folder, overwrite, messages.append
        return planned(SEARCHED, 888, 1_079, *where), messages


def test_a_stopped_run_keeps_the_steps_that_it_had(tmp_path):
    first, _ = plan(tmp_path, 10)
    assert first.num_steps > 100_000 and first.score_steps == SEARCHED.score_steps
    other = plan(tmp_path, 10, speed=FAST._replace(anneal=10.0))[0]
    assert other != first  # nothing was saved yet
    plan(tmp_path, 10)
    stored = json.loads((tmp_path / "prune.json").read_text())
    (tmp_path / "checkpoints").mkdir()
    resumed, messages = plan(tmp_path, 10, speed=FAST._replace(anneal=10.0))
    assert (resumed.num_steps, not messages) == (stored["num_steps"], True)
    with refusal("holds a run with --minutes 10, not 5: choose another workdir, or add --overwrite"):
        plan(tmp_path, 5)
    assert plan(tmp_path, 5, overwrite=True)[0].num_steps < first.num_steps
    (tmp_path / "prune.json").write_text("{")
    assert plan(tmp_path, None)[0] == SEARCHED


def test_too_short_a_time_is_said(tmp_path):
    config, messages = plan(tmp_path, 0.1)
    assert config.num_steps == budget.TRIAL_STEPS
    assert messages[-1] == "0.1 min are too short: making the fewest steps"


def test_a_rival_takes_half_of_the_time():
    alone, beside = (steps_for(FAST, 1_000.0, 4_000, has_rival=has) for has in (False, True))
    assert beside[0] == alone[0] and beside[1] < alone[1] / 2


@pytest.mark.slow
def test_the_speed_is_measured():
    found = budget.measure(SEARCHED)
    assert found.search > 0 and found.anneal > 0 and found.seconds_before > 0
