"""The progress of a run as lines of JSON."""

import json

import pytest

from sa_jax.commands.run.metrics import FILE, metrics, remove_unused, writing_to
from sa_jax.commands.run.records import Progress
from tests.conftest import refusal


def lines(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def annealing(step, probe=0):
    return Progress("annealing", step, 300, 10.0, 0.5, 0.4, 1e-3, 0.25, probe=probe)


def test_each_progress_is_a_line_with_what_has_a_value(tmp_path):
    write = writing_to(tmp_path)
    write(Progress("training", 1, 2, 3.0, accuracy=0.75))
    write(annealing(100))
    first, second = lines(tmp_path)
    assert 0 <= first.pop("seconds") < 60
    assert first == {"stage": "training", "step": 1, "num_steps": 2, "steps_per_second": 3.0, "accuracy": 0.75}
    assert second.keys() - first.keys() == {"seconds", "energy", "best_energy", "temperature", "acceptance"}
    assert (second["energy"], second["temperature"]) == (0.5, 1e-3)
    assert metrics(annealing(100, probe=2))["probe"] == 2


def test_a_resumed_run_replaces_the_steps_that_it_makes_again(tmp_path):
    write = writing_to(tmp_path)
    for progress in (Progress("score search", 100, 100, 1.0, 2.0), annealing(100), annealing(200), annealing(300)):
        write(progress)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"stage": "annea')  # cut off
    write = writing_to(tmp_path)
    write(annealing(200))
    write(annealing(300))
    assert [(line["stage"], line["step"]) for line in lines(tmp_path)] == [
        ("score search", 100),
        ("annealing", 100),
        ("annealing", 200),
        ("annealing", 300),
    ]
    writing_to(tmp_path)(annealing(100, probe=1))
    assert len(lines(tmp_path)) == 5


@pytest.mark.parametrize(("left", "stays"), [("result.json", True), ("checkpoints", True), ("other", False)])
def test_a_run_that_saved_nothing_leaves_no_file(left, stays, tmp_path):
    writing_to(tmp_path)(annealing(100))
    (tmp_path / left).touch()
    remove_unused(tmp_path)
    assert (tmp_path / FILE).exists() == stays


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    with refusal("metrics.jsonl could not be written"):
        writing_to(tmp_path / "none")(annealing(100))
