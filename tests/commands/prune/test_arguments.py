"""The arguments of `sa-jax prune`."""

import argparse
import dataclasses
from pathlib import Path

import pytest

from sa_jax.commands.prune.arguments import add_arguments
from sa_jax.commands.prune.settings import PruneConfig


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["m.pt", "--data=d.csv", "--out=o.pt", *words])


def test_they_are_the_settings():
    names = {field.name for field in dataclasses.fields(PruneConfig)}
    assert set(vars(parsed())) == names | {"dry_run"}
    given = {name: value for name, value in vars(parsed()).items() if name != "dry_run"}
    assert PruneConfig(**given) == PruneConfig(Path("m.pt"), "d.csv", Path("o.pt"))


@pytest.mark.parametrize("words", [("--input-mean=2", "--dry-run"), ("--input_mean=2", "--dry_run")])
def test_flags_have_hyphens_or_underscores(words):
    found = parsed(*words)
    assert found.input_mean == 2 and found.input_std == 1 and found.dry_run


def test_the_three_sizes_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        parsed("--density=0.1", "--target_accuracy=0.9")
    assert "not allowed with" in capsys.readouterr().err
