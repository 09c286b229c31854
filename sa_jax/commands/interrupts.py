"""SIGINT and SIGTERM end a command within seconds, or where it can save its work.

Python runs its own handlers of signals between two of its instructions. Compiling a program is one instruction,
which may take minutes, and so is a chunk of steps. So a thread receives the signals too. It decides what each of
them does, and ends the process where the main thread cannot.
"""

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from sa_jax.commands.messages import INTERRUPTED, tell

# Time that a command has to clean up after an interrupt, before its process is ended.
GRACE_SECONDS = 2.0
# Time that libraries have to end after a command that failed.
EXIT_SECONDS = 10.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def nothing_written(besides: str = "") -> int:
    """Tells the user that an interrupted command has written nothing, and returns the exit code.

    Args:
      besides: exception, such as " except one file".
    """
    tell(f"interrupted; nothing was written{besides}")
    return INTERRUPTED


class _State:
    """The state of this process.

    Attributes:
      end: tells the user what an interrupt has cost, and returns the exit code.
      code: the exit code that `end` returned, or None.
      cleans_up: whether the main thread gets a KeyboardInterrupt before the process is ended.
      deferral: what the first interrupt does instead of ending the command, as text; None to end it.
      requested: whether an interrupt was deferred.
      ends: whether an interrupt ends the command.
      handler: handler of the signals; None if this process does not watch for them.
    """

    end: Callable[[], int] = staticmethod(nothing_written)
    code: int | None = None
    cleans_up = False
    deferral: str | None = None
    requested = False
    ends = False
    handler: Callable[[int, Any], None] | None = None


_state, _ending = _State(), threading.RLock()


def watch() -> None:
    """Makes SIGINT and SIGTERM end this process; for the main thread, once.

    While libraries are loaded, the process is ended at once. See `begin`, `defer` and `on_end` for what follows.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    decisions: queue.SimpleQueue[bool] = queue.SimpleQueue()
    raised = False

    def handle(number: int, frame: Any) -> None:
        nonlocal raised
        ends = raised or decisions.get()
        while not ends and not decisions.empty():  # signals that came together are handled once
            ends = decisions.get()
        if ends and not raised:
            raised = True  # the next ones shall not disturb the cleaning up
            raise KeyboardInterrupt

    def receive() -> None:
        while True:
            if os.read(reader, 1)[0] not in SIGNALS:
                continue
            if _state.deferral is not None and not _state.requested:
                _state.requested = True
                decisions.put(False)
                tell(f"{_state.deferral}; interrupt again to stop immediately")
                continue
            _state.ends = True
            if _state.cleans_up:
                decisions.put(True)
                time.sleep(GRACE_SECONDS)
            leave(end())

    def unraisable(args: Any) -> None:
        # A callback drops what it raises. `receive` ends the process nevertheless.
        if not isinstance(args.exc_value, KeyboardInterrupt):
            sys.__unraisablehook__(args)

    sys.unraisablehook = unraisable
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=receive, name="interrupts", daemon=True).start()
    _state.handler = handle
    arm()


def arm() -> None:
    """Installs the handlers again, after a library has installed its own."""
    if _state.handler is not None:
        for number in SIGNALS:
            signal.signal(number, _state.handler)


def begin() -> None:
    """From here on an interrupt raises KeyboardInterrupt, so that the command can clean up before it ends."""
    _state.cleans_up = True


def defer(message: str | None) -> None:
    """Sets what the first interrupt does.

    Args:
      message: what the command will do instead of ending, for the user; it then asks `requested`. None to end it.
    """
    _state.deferral = message


def requested() -> bool:
    """Returns whether an interrupt was deferred."""
    return _state.requested


def on_end(tell_end: Callable[[], int]) -> None:
    """Sets the function that an interrupted command calls last.

    Args:
      tell_end: tells the user what was written, and returns the exit code.
    """
    _state.end, _state.code = tell_end, None


def end() -> int:
    """Tells the user, once, what an interrupt has cost; returns the exit code."""
    with _ending:
        if _state.code is None:
            _state.code = _state.end()
        return _state.code


def finish(code: int) -> None:
    """Ends this process after its command has ended; an interrupt has nothing to stop any more.

    Args:
      code: the exit code.
    """
    _state.cleans_up, _state.deferral = False, None
    on_end(lambda: code)
    if _state.ends:
        leave(code)
    if code:  # JAX waits for the other processes of a run, which may not end
        waits = threading.Timer(EXIT_SECONDS, leave, [code])
        waits.daemon = True
        waits.start()
    sys.exit(code)


def leave(code: int) -> None:
    """Ends this process without waiting for threads, libraries or other processes."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed
            stream.flush()
    if os.isatty(2):
        os.write(2, b"\x1b[?25h")  # shows the cursor, which a progress bar hides
    os._exit(code)
