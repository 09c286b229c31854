"""Settings of `sa-jax prune`: what they refuse, and what follows."""

from pathlib import Path

import pytest

from sa_jax.commands.prune.settings import PruneConfig
from sa_jax.networks.patterns import NM
from tests.conftest import refusal


def config(**settings):
    return PruneConfig(Path("m.npz"), "d.csv", Path("o.npz"), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0}, "density must be a finite number above 0 and at most 1, not 0"),
        ({"density": 0.1, "pattern": "2:4"}, "give only one of density and pattern"),
        ({"density": 0.1, "target_accuracy": 0.9}, "give only one of density and target_accuracy"),
        ({"target_accuracy": 97}, "target_accuracy must be a finite number above 0 and at most 1, not 97"),
        ({"pattern": "two"}, "pattern must be a number or a text such as 'unit:0.5'"),
        ({"pattern": "5:4"}, "pattern is a wrong pattern, '5:4': kept must be a whole number from 1 to 4, not 5"),
        ({"pattern": "4x4:0.5"}, "pattern = '4x4:0.5': only patterns of single weights are possible"),
        ({"minutes": 0}, "minutes must be a finite number above 0, not 0"),
        ({"seed": -1}, "seed must be a whole number from 0 to"),
        ({"input_std": 0}, "input_std must be a finite number above 0"),
        ({"input_mean": float("nan")}, "input_mean must be a finite number"),
        ({"activation": "sigmoid"}, "activation must be one of relu, tanh, gelu, not 'sigmoid'"),
        ({"label": 3}, "label must be text, not 3"),
        ({"masks": "masks.txt"}, "masks.txt: masks are written to .npz or .safetensors"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with refusal(message):
        config(**settings)


def test_a_tenth_is_kept_where_nothing_else_is_said():
    assert config().density == 0.1
    assert config(target_accuracy=0.9).density is None
    assert config(pattern="2:4").density is None and config(pattern="2:4").pattern == NM(2, 4)
    assert config(pattern=NM(2, 4)) == config(pattern="2:4")


def test_paths_may_begin_in_the_home_folder():
    assert config(workdir="~/runs").workdir == Path.home() / "runs"


@pytest.mark.parametrize(
    ("out", "name"), [("a.pt", "a-0.1.pt"), ("a.weights.h5", "a-0.1.weights.h5"), ("a.b.npz", "a.b-0.1.npz")]
)
def test_the_file_of_a_density_has_it_in_its_name(out, name):
    config = PruneConfig(Path("m.npz"), "digits", Path("f") / out, densities=[0.1, 0.2], workdir=Path("w"))
    assert config.out_of(0.1) == Path("f") / name and config.outs == [config.out_of(0.2), config.out_of(0.1)]
