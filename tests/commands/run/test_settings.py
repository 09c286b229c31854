"""Settings of a run: what they refuse, and the numbers that they choose."""

import dataclasses
import json

import pytest

from sa_jax import InputError
from sa_jax.commands.run.settings import RunConfig, pattern_of
from sa_jax.networks.patterns import NM
from tests.commands.run.runs import SMALL
from tests.conftest import refusal


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"density": 0.0},
            "DENSITY must be a finite number above 0 and at most 1, or None to search for it, not 0.0",
        ),
        ({"density": 1.01}, "DENSITY must be a finite number"),
        ({"density": float("nan")}, "DENSITY must be a finite number"),
        ({"density": "half"}, "DENSITY must be a finite number"),
        ({"target_accuracy": 0.9}, "run.target_accuracy = 0.9 and DENSITY = 0.2 exclude each other"),
        (
            {"density": None, "target_accuracy": 95},
            "run.target_accuracy must be a finite number above 0 and at most 1, or None, not 95",
        ),
        ({"density": None, "target_accuracy": float("nan")}, "run.target_accuracy must be a finite number"),
        ({"density": None, "target_accuracy": True}, "run.target_accuracy must be a finite number"),
        ({"tolerance": 1}, "run.tolerance must be a finite number of at least 0 and below 1, not 1"),
        ({"tolerance": None}, "run.tolerance must be a finite number"),
        (
            {"num_steps": 0},
            "NUM_STEPS must be a whole number from 1 to 2147483647, or None to choose it by run.budget, not 0",
        ),
        ({"num_steps": 2**31}, "NUM_STEPS must be a whole number from 1 to 2147483647"),
        ({"num_chains": 0}, "NUM_CHAINS must be a whole number of at least 1"),
        ({"num_chains": True}, "NUM_CHAINS must be a whole number"),
        ({"num_samples": 0.5}, "NUM_SAMPLES must be a whole number"),
        ({"seed": -1}, "SEED must be a whole number from 0"),
        ({"hidden": 300}, "HIDDEN must be a list"),
        ({"hidden": [3, 0]}, "each width in HIDDEN must be a whole number of at least 1, not 0"),
        ({"dataset": 5}, "DATASET must be text in quotes"),
        ({"weights": None}, "WEIGHTS must be text in quotes"),
        ({"activation": "sine"}, "ACTIVATION must be one of relu, tanh, gelu"),
        ({"input_std": 0}, "INPUT_STD must be a finite number above 0"),
        ({"input_mean": float("inf")}, "INPUT_MEAN must be a finite number"),
        ({"use_bias": 1}, "run.use_bias must be True or False"),
        ({"initializer": "ones"}, "run.initializer must be one of"),
        ({"energy": "loss"}, "run.energy must be one of cross_entropy, kl_to_teacher, error_rate"),
        ({"move": "flip"}, "run.move must be one of saliency, informed, uniform"),
        ({"estimates": "backward"}, "run.estimates must be one of forward, gradient, not 'backward'"),
        (
            {"score_steps": 0},
            "run.score_steps must be a whole number of at least 1, or None to choose it; for annealing alone "
            "choose another start, such as 'magnitude', not 0",
        ),
        ({"score_steps": 1.5}, "run.score_steps must be a whole number"),
        ({"pattern": "two"}, "run.pattern must be a number or a text such as 'unit:0.5'"),
        (
            {"pattern": "2x2:0.5"},
            "run.pattern = '2x2:0.5': only patterns of single weights are possible, as '2:4'",
        ),
        ({"pattern": "2:4"}, "needs run.move 'uniform', not 'saliency'"),
        ({"pattern": "2:4", "start": "edge_popup"}, "with run.pattern, run.start must be one of magnitude"),
        ({"pattern": "2:4", "density": None}, "run.pattern = '2:4' and DENSITY = None exclude each other"),
        ({"patience": 0}, "run.patience must be a finite number above 0 and at most 1, not 0"),
        ({"patience": 1.1}, "run.patience must be a finite number above 0 and at most 1, not 1.1"),
        ({"patience": None}, "run.patience must be a finite number"),
        ({"budget": None}, "run.budget must be a whole number of at least 1, not None"),
        ({"num_samples": "all"}, "NUM_SAMPLES must be a whole number of at least 1, or None to choose it"),
        ({"start": "zero"}, "run.start must be one of"),
        ({"schedule": "exponential"}, "run.schedule must be one of"),
        ({"logit_scale": 0}, "run.logit_scale must be a finite number above 0"),
        ({"temperature_start": float("nan")}, "run.temperature_start must be a finite number"),
        ({"temperature_end": -1e-9}, "run.temperature_end must be a finite number above 0.*, not -1e-09"),
        (
            {"schedule": "linear", "temperature_end": -1e-9},
            "run.temperature_end .* number of at least 0",
        ),
        ({"schedule": "constant", "temperature_start": float("inf")}, "run.temperature_start must be .* not inf"),
        (
            {"checkpoint_seconds": float("nan")},
            "CHECKPOINT_SECONDS must be .* of at least 0, not nan",
        ),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message) as error:
        dataclasses.replace(SMALL, **settings)
    assert "\n" not in str(error.value)


def test_samples_and_steps_are_chosen_by_branches_and_budget():
    config = dataclasses.replace(SMALL, num_steps=None, num_samples=None, budget=1_234_567)
    assert config.sizes(num_kept=100, available=60_000) == (2_000, 600)
    informed = dataclasses.replace(config, move="informed")
    assert informed.sizes(num_kept=400, available=60_000) == (16_000, 100)  # at least a block of steps
    assert config.sizes(num_kept=400, available=500) == (500, 2_400)  # no more samples than there are
    given = dataclasses.replace(config, num_steps=77, num_samples=300)
    assert given.sizes(num_kept=100, available=60_000) == (300, 77)
    assert given.sizes(num_kept=100, available=200) == (200, 77)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "all"])
def test_a_bad_chain_batch_is_refused(value):
    with refusal("run.chain_batch must be a whole number of at least 1, or None", repr(value)):
        dataclasses.replace(SMALL, chain_batch=value)


@pytest.mark.parametrize(("pattern", "density"), [("2:4", 0.5), (NM(1, 4), 0.25), ("unit:0.1", 0.1), (0.2, 0.2)])
def test_a_pattern_stands_for_the_density_the_move_and_the_start(pattern, density):
    config = RunConfig(pattern=pattern)
    assert (config.density, config.move, config.start) == (density, "uniform", "magnitude")
    assert config.options.pattern == pattern_of(pattern) == pattern_of(config.pattern)
    assert dataclasses.replace(config, seed=1).pattern == config.pattern
    assert json.dumps(dataclasses.asdict(config))
