"""Messages of the commands: one line each."""

import pytest

from sa_jax.commands.messages import first_line, tell


def test_messages_go_to_standard_error(capsys):
    tell("done")
    assert capsys.readouterr() == ("", "sa-jax: done\n")


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
