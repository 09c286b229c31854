"""Messages of the commands to the user."""

import sys

# Exit code of a command that was stopped and that the same command resumes: EX_TEMPFAIL of sysexits.h.
RESUMABLE = 75
# Exit code of a command that was interrupted: 128 and the number of SIGINT, as shells count.
INTERRUPTED = 130


def tell(message: str) -> None:
    """Prints a message to the user, on standard error."""
    print(f"sa-jax: {message}\n", end="", file=sys.stderr, flush=True)  # in one piece, or not at all


def clock(seconds: float) -> str:
    """Returns a duration as minutes and seconds, or hours, minutes and seconds.

    >>> clock(7.9), clock(3_600)
    ('0:07', '1:00:00')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def first_line(error: BaseException) -> str:
    r"""Returns the first line of an error's message, or the error's name if there is no message.

    >>> first_line(ValueError("no such layer\nin file x")), first_line(ValueError())
    ('no such layer', 'ValueError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
