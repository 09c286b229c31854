"""Messages of the commands to the user."""

import sys

# Exit code of a command that was stopped and that the same command resumes: EX_TEMPFAIL of sysexits.h.
RESUMABLE = 75
# Exit code of a command that was interrupted: 128 and the number of SIGINT, as shells count.
INTERRUPTED = 130


def tell(message: str) -> None:
    """Prints a message to the user, on standard error."""
    print(f"sa-jax: {message}", file=sys.stderr, flush=True)


def first_line(error: BaseException) -> str:
    r"""Returns the first line of an error's message, or the error's name if there is no message.

    >>> first_line(ValueError("no such layer\nin file x")), first_line(ValueError())
    ('no such layer', 'ValueError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
