"""`sa-jax run` on a terminal: its processes, and what it prints."""

from pathlib import Path

import pytest

from sa_jax import cli
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


def test_the_summary_is_that_of_the_result(finished):
    result = workdirs.read_result(finished)
    lines = summary(result, Path("there")).splitlines()
    assert lines[0].startswith(f"{result['kept']} of {result['total']:,} branches kept (")
    assert f"{100 * result['test_accuracy']:.2f} % test accuracy" in lines[1] and "annealed" in lines[1]
    assert f"  {result['worth']}" in lines and lines[-1] == "  see there/report.html"
    searched = summary(result | {"probes": [1, 2], "warnings": ["too few"], "moves_weights": True}, Path("there"))
    assert "found by 2 probes" in searched and "  warning: too few\n" in searched
    assert "annealed, weights moved" in searched
