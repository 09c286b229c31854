"""`sa-jax run` on a terminal: its processes, and what it prints."""

import json
from pathlib import Path

import pytest

from sa_jax import cli
from sa_jax.commands import interrupts
from sa_jax.commands.run.console import summary
from sa_jax.files import workdirs


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--coordinator=127.0.0.1:1"], ["--num_processes is missing"]),
        (["--coordinator=x", "--num_processes=2", "--process_id=0"], ["--coordinator must be HOST:PORT"]),
        (
            ["--coordinator=x:1", "--num_processes=2", "--process_id=2"],
            ["--process_id must be a whole number from 0 to 1, not 2"],
        ),
    ],
)
def test_processes_that_cannot_meet_are_refused(words, parts, tmp_path, capsys):
    code = cli.main(["run", "--gin_file=configs/digits.gin", f"--workdir={tmp_path / 'run'}", *words])
    assert code == 2 and not (tmp_path / "run").exists()
    said = capsys.readouterr().err
    assert all(part in said for part in parts)


@pytest.mark.slow
def test_a_search_that_was_interrupted_is_resumed_by_the_same_command(tmp_path, capsys, monkeypatch):
    words = ["run", "--gin_file=configs/digits.gin", f"--workdir={tmp_path}"]
    bindings = ("WEIGHTS='random'", "HIDDEN=[12]", "NUM_STEPS=400", "NUM_SAMPLES=60", "run.score_steps=250")
    words += [f"--gin_bindings={binding}" for binding in bindings]
    monkeypatch.setattr(interrupts, "requested", lambda: True)
    assert cli.main(words) == 75
    stopped = "the score search was stopped after 100 of 250 steps; repeat the command to resume"
    said = capsys.readouterr().err.splitlines()
    assert said[1].endswith("  score search: 250 steps") and said[-1] == f"sa-jax: {stopped}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "metrics.jsonl"]
    monkeypatch.undo()
    assert cli.main([*words, "--gin_bindings=run.score_steps=300"]) == 2
    assert "unfinished run with score_steps = 250, not 300: choose another" in capsys.readouterr().err
    assert cli.main(words) == 0
    assert "  resuming score search from step 100 of 250\n" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["stage"] == "score search"] == [100, 200, 250]
    assert lines[-1]["stage"] == "annealing" and lines[-1]["step"] == 400


def test_the_summary_is_that_of_the_result(finished):
    result = workdirs.read_result(finished)
    lines = summary(result, Path("there")).splitlines()
    assert lines[0].startswith(f"{result['kept']} of {result['total']:,} branches kept (")
    found = f"{100 * result['test_accuracy']:.2f} ±{100 * result['standard_errors']['test_accuracy']:.2f} %"
    assert f"{found} test accuracy" in lines[1] and "annealed" in lines[1]
    assert f"  {result['worth']}" in lines and lines[-1] == "  see there/report.html"
    searched = summary(result | {"probes": [1, 2], "warnings": ["too few"], "moves_weights": True}, Path("there"))
    assert "found by 2 probes" in searched and "  warning: too few\n" in searched
    assert "annealed, weights moved" in searched
