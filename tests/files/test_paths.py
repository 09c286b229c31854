"""Paths as users write them."""

from pathlib import Path, PurePosixPath

import pytest

from sa_jax.files.paths import expanded
from tests.conftest import refusal


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("path", ["~/a/b.pt", Path("~/a/b.pt"), PurePosixPath("~/a/b.pt")])
def test_a_leading_tilde_is_the_home_folder(home, path):
    assert expanded(path) == home / "a" / "b.pt"


def test_the_tilde_alone_is_the_home_folder(home):
    assert expanded("~") == home


@pytest.mark.parametrize("path", ["a/~/b", "a~", "/~", "a/~x", ""])
def test_any_other_path_stays_as_it_is(home, path):
    assert expanded(path) == Path(path)


def test_an_unknown_user_is_refused_in_a_line():
    with refusal("~nobody_of_this_name/x: the home folder that ~ stands for is not known"):
        expanded("~nobody_of_this_name/x")


def test_what_is_not_a_path_is_refused_in_a_line():
    with refusal("a path must be text or a Path, not dict"):
        expanded({"fc1.weight": 0})
