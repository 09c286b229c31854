"""The README's examples run, its commands exist, its figures are those of the saved results."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from sa_jax import cli
from sa_jax.export import c

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: re.findall(r"\w+\(", code)[-1])
def test_examples_run(code, capsys):
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    if "length" in names:
        before, after = map(float, printed.split(" -> "))
        assert after < 0.5 * before
        assert sorted(names["result"].best.tolist()) == list(range(30))
        assert len([line for line in code.splitlines() if line]) <= 12
    else:
        assert float(printed) > 0.6


def test_commands_exist():
    lines = [line.split("#")[0] for block in blocks("bash") for line in block.splitlines()]
    assert len(lines) >= 6
    for program, *arguments in map(shlex.split, lines):
        if program == "make":
            assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif [program, *arguments][:2] == ["sa-jax", "export"]:  # of a run: see test_export
            assert {word.split("=")[0] for word in arguments[2:]} == {"--format", "--bits", "--out"} - (
                {"--bits"} - {word.split("=")[0] for word in arguments}
            )
        elif program == "cc":  # likewise
            assert "-std=c99" in arguments
        elif program == "runs/digits/classify":
            assert "classify IMAGE.pgm" in c.CLASSIFY
        elif program == "sa-jax":
            assert cli.main([*arguments, "--dry_run"]) == 0
        elif program == "python":
            assert (ROOT / arguments[0]).is_file()
        else:
            assert [program, *arguments] == ["pip", "install", "-e", "."]


def test_figures_are_those_of_the_saved_results():
    script = runpy.run_path(str(ROOT / "scripts/results.py"))
    assert script["readme_with"](TEXT) == TEXT
    assert (ROOT / "scripts/results/mlpnet_mnist.png").is_file()
