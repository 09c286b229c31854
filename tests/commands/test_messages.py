"""Messages of the commands: one line each."""

import pytest

from sa_jax.commands.messages import clock, first_line, tell


def test_messages_go_to_standard_error(capsys):
    tell("done")
    assert capsys.readouterr() == ("", "sa-jax: done\n")


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (7_325, "2:02:05")])
def test_durations(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\nsecond"), "first"),
        (ValueError("\n first\r\nsecond"), "first"),
        (ValueError(), "ValueError"),
        (KeyError(""), "''"),
        (OSError("  \n"), "OSError"),
    ],
)
def test_an_error_is_told_in_one_line(error, line):
    assert first_line(error) == line
