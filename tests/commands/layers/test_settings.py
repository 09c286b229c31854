"""Settings of `sa-jax layers`, and patterns read from text."""

import pytest

from sa_jax.commands.layers.settings import LayersConfig, parse
from sa_jax.networks.patterns import NM, Block, Channels, Columns, Kernels, Layer, Rows, Unit
from tests.conftest import refusal


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("unit:0.5", Unit(0.5)),
        ("layer:0.5", Layer(0.5)),
        (0.5, Layer(0.5)),
        ("0.5", Layer(0.5)),
        (1, Layer(1.0)),
        ("2:4", NM(2, 4)),
        ("4x2:0.5", Block((4, 2), 0.5)),
        ("columns:0.5", Columns(0.5)),
        ("rows:0.25", Rows(0.25)),
        ("kernels:0.5", Kernels(0.5)),
        ("channels:0.25", Channels(0.25)),
    ],
)
def test_patterns_are_read_from_text_and_written_as_text(text, pattern):
    assert parse(text) == pattern and parse(str(pattern)) == pattern


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("half", ["pattern must be a number or a text such as 'unit:0.5'", "not 'half'"]),
        ("half:0.5", ["pattern must be a number or a text such as", "not 'half:0.5'"]),
        (Unit(0.5), ["pattern must be a number or a text such as", "not Unit(density=0.5)"]),
        (None, ["not None"]),
        (True, ["not True"]),
        ("2:0.5", ["not '2:0.5'"]),
        ("4x:0.5", ["not '4x:0.5'"]),
        ("5:4", ["layers.pattern is a wrong pattern, '5:4': kept must be a whole number from 1 to 4, not 5"]),
        (
            "0x4:0.5",
            [
                "layers.pattern is a wrong pattern, '0x4:0.5': the height of a block must be a whole",
                "not 0",
            ],
        ),
        (
            "unit:1.5",
            [
                "layers.pattern is a wrong pattern, 'unit:1.5': density must be a finite number above 0",
                "not 1.5",
            ],
        ),
        ("nan", ["layers.pattern is a wrong pattern, 'nan': density", "not nan"]),
    ],
)
def test_text_that_is_not_a_pattern_is_refused(text, parts):
    with refusal(*parts):
        parse(text)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"grams": None}, "no layer inputs given: set layers.grams, or both layers.forward and layers.inputs"),
        ({"sequential": True}, "layers.sequential needs layers.forward"),
        ({"inputs": "inputs.npz"}, "set either layers.grams, or both layers.forward and layers.inputs"),
        ({"weights": ""}, "layers.weights must be text in quotes, not ''"),
        ({"grams": 3}, "layers.grams must be text in quotes, not 3"),
        ({"layers": "fc1"}, "layers.layers must be a list of names, or None, not 'fc1'"),
        ({"layers": [1]}, "layers.layers must be a list of names, or None, not [1]"),
        ({"sweeps": float("nan")}, "layers.sweeps must be a finite number above 0, not nan"),
        ({"damping": float("nan")}, "layers.damping must be a finite number of at least 0, not nan"),
        ({"sweeps": 0}, "layers.sweeps must be a finite number above 0, not 0"),
        ({"damping": -1.0}, "layers.damping must be a finite number of at least 0, not -1.0"),
        ({"seed": -1}, "seed must be a whole number from 0 to 4294967295, not -1"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 to"),
        ({"refit": 1}, "layers.refit must be True or False"),
        ({"allocation": "by_size"}, "layers.allocation must be one of uniform, by_error"),
        (
            {"allocation": "by_error", "pattern": "2:4"},
            "layers.allocation = 'by_error' needs a pattern such as 'unit:0.5', not '2:4'",
        ),
        (
            {"allocation": "by_error", "pattern": 0.5},
            "layers.allocation = 'by_error' needs a pattern such as 'unit:0.5', not 0.5",
        ),
        ({"pattern": "half"}, "layers.pattern must be a number or a text such as"),
    ],
)
def test_refuses_settings_that_make_no_sense(changes, part):
    with refusal(part):
        LayersConfig(**{"weights": "model.safetensors", "grams": "grams.safetensors"} | changes)
