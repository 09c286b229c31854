"""Figures and the code that they are of: what counts as a change, what is left, what is noted."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = '"""A module."""\n\n\ndef f(x):\n    """Doubles."""\n    return "# no comment", 2 * x  # doubled\n'


@pytest.fixture
def script():
    return runpy.run_path(str(ROOT / "scripts/measure_all.py"))


@pytest.fixture
def figures(script):
    return script["figures"]


@pytest.fixture
def tree(figures, tmp_path, monkeypatch):
    """A checkout with one figure, of one source, that has not been measured."""
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    monkeypatch.setattr(figures, "STAMPS", tmp_path / "measured.json")
    one = figures.Figure(("one.json",), ("true",), 7, ("code.py",))
    monkeypatch.setattr(figures, "FIGURES", {"one": one})
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "one.json").write_text("{}")
    return tmp_path


def test_code_is_without_comments_docstrings_and_blank_lines(figures):
    assert figures.code_of(CODE) == 'def f(x):\n    return "# no comment", 2 * x'


def test_only_code_makes_a_figure_old(figures, tree):
    assert not figures.is_current("one")
    figures.stamp("one", "abc")
    assert figures.is_current("one")
    assert figures.note("one") == ""
    (tree / "code.py").write_text(CODE.replace("Doubles", "Gives twice").replace("# doubled", ""))
    assert figures.is_current("one")
    (tree / "code.py").write_text(CODE.replace("2 * x", "3 * x"))
    assert not figures.is_current("one")
    assert "abc" in figures.note("one")
    assert "| one | `abc` | changed |" in figures.table()


def test_a_figure_without_its_file_is_old(figures, tree):
    figures.stamp("one", "abc")
    (tree / "one.json").unlink()
    assert not figures.is_current("one")


def test_every_figure_names_code_and_files_that_are_there(figures):
    for name, figure in figures.FIGURES.items():
        assert figures.paths_of(figure), name
        for file in figure.files:
            assert (figures.RESULTS / file).is_file(), file
    assert set(json.loads(figures.STAMPS.read_text())) == set(figures.FIGURES)


def test_every_saved_result_belongs_to_a_figure(figures):
    known = {file for figure in figures.FIGURES.values() for file in figure.files}
    others = {
        "README.md",
        "measured.json",
        "peers.json",
        "mlpnet_mnist.png",
    }  # the picture is drawn of accuracy.json
    assert {path.name for path in figures.RESULTS.iterdir()} - others == known


def test_no_text_says_by_hand_that_a_figure_is_old(figures):
    pages = [ROOT / "README.md", figures.RESULTS / "README.md", *(ROOT / "sa_jax/docs").glob("*.md")]
    for page in pages:
        text = page.read_text().replace("\n", " ")
        assert not re.search(r"measured before|measured last|[Bb]eing measured again|before the change", text), (
            page
        )


def test_check_tells_what_is_left_and_fails(script, tree, monkeypatch, capsys):
    monkeypatch.setitem(script["main"].__globals__, "FIGURES", script["figures"].FIGURES)
    monkeypatch.setattr(sys, "argv", ["measure_all", "--check"])
    assert script["main"]() == 1
    told = capsys.readouterr().out
    assert "1 of 1 left" in told
    assert "7 min" in told
    script["figures"].stamp("one", "abc")
    assert script["main"]() == 0


def test_uncommitted_code_is_not_measured(script, tree, monkeypatch):
    figures = script["figures"]
    for command in (["init", "-q"], ["add", "code.py"]):
        figures._git(*command)
    with pytest.raises(SystemExit, match="commit first"):
        figures.commit_of("one")
