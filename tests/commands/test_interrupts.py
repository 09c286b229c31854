"""Signals to a real process: it ends, or finishes what it can save, and says which."""

import os
import pty
import signal
import subprocess
import sys

import pytest

# Each program says "ready" when it may get its signals.
HEAD = """
import sys, threading, time
import numpy
from sa_jax.commands import interrupts
from sa_jax.commands.messages import tell

def ready():
    print("ready", flush=True)

interrupts.watch()
"""
# A library that computes, and whose callbacks drop exceptions.
STUCK = """
matrix = numpy.random.default_rng(0).normal(size=(1500, 1500))
threading.Timer(0.2, ready).start()  # while the matrix is decomposed
while True:
    try:
        numpy.linalg.svd(matrix)
    except BaseException:
        pass
"""
SIGNALS = [signal.SIGINT, signal.SIGTERM]


def run(program, *signals):
    """Sends a signal, or None, after each line of the program; returns its exit code and all that it printed."""
    words = [sys.executable, "-c", HEAD + program]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        said = ""
        for number in signals:
            said += process.stdout.readline()
            if number is not None:
                process.send_signal(number)
        try:
            return process.wait(timeout=60), said + process.stdout.read()
        finally:
            process.kill()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_process_that_loads_libraries_ends_at_once(number):
    program = "ready()\ntry:\n    time.sleep(60)\nexcept BaseException:\n    print('cleaned up')\n"
    assert run(program, number) == (130, "ready\nsa-jax: interrupted; nothing was written\n")


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_process_that_computes_is_ended(number):
    assert run("interrupts.begin()" + STUCK, number) == (130, "ready\nsa-jax: interrupted; nothing was written\n")


def test_a_command_cleans_up_before_it_ends():
    program = """
interrupts.begin()
interrupts.on_end(lambda: tell("told") or 75)
try:
    ready()
    time.sleep(60)
except KeyboardInterrupt:
    ready()
    time.sleep(0.5)  # the second signal comes
    print("cleaned up", flush=True)
    code = interrupts.end()
interrupts.finish(code)
"""
    assert run(program, *SIGNALS) == (75, "ready\nready\ncleaned up\nsa-jax: told\n")


SAVING = """
interrupts.begin()
interrupts.defer("saving")
ready()
while not interrupts.requested():
    time.sleep(0.01)
"""
DEFERRED = "ready\nsa-jax: saving; interrupt again to stop immediately\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupt_can_be_deferred(number):
    assert run(SAVING + "interrupts.finish(75)", number) == (75, DEFERRED)


@pytest.mark.slow
def test_the_second_interrupt_is_not_deferred():
    expected = DEFERRED + "ready\nsa-jax: interrupted; nothing was written\n"
    assert run(SAVING + STUCK, signal.SIGINT, None, signal.SIGTERM) == (130, expected)


@pytest.mark.slow
def test_no_traceback_where_a_callback_drops_the_interrupt():
    program = """
class Dropping:
    def __del__(self):
        ready()
        time.sleep(60)

interrupts.begin()
Dropping()
time.sleep(60)
"""
    assert run(program, signal.SIGINT) == (130, "ready\nsa-jax: interrupted; nothing was written\n")


def test_a_command_that_has_ended_keeps_its_exit_code():
    program = """
import atexit
interrupts.begin()
interrupts.defer("saving")
atexit.register(lambda: (ready(), time.sleep(60)))
interrupts.finish(0)
"""
    assert run(program, signal.SIGTERM) == (0, "ready\n")


def test_a_command_that_failed_does_not_wait_for_libraries():
    program = """
import atexit
interrupts.EXIT_SECONDS = 0.1
atexit.register(lambda: time.sleep(60))
interrupts.finish(2)
"""
    assert run(program) == (2, "")


def test_handlers_that_a_library_replaced_are_installed_again():
    program = """
import signal
interrupts.begin()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
interrupts.arm()
ready()
time.sleep(60)
"""
    code, said = run(program + "\n", signal.SIGTERM)
    assert code != 0 and "KeyboardInterrupt" in said  # no command is there to catch it


def test_a_terminal_gets_its_cursor_back():
    master, terminal = pty.openpty()
    program = (
        "import sys; from sa_jax.commands import interrupts; sys.stderr.write('\\x1b[?25l'); interrupts.leave(3)"
    )
    assert subprocess.run([sys.executable, "-c", program], stderr=terminal).returncode == 3
    assert os.read(master, 100) == b"\x1b[?25l\x1b[?25h"
    for one in (master, terminal):
        os.close(one)


def test_other_signals_keep_their_handlers():
    program = """
import signal
signal.signal(signal.SIGUSR1, lambda *ignored: print("own", flush=True))
ready()
time.sleep(0.5)
interrupts.finish(0)
"""
    assert run(program, signal.SIGUSR1) == (0, "ready\nown\n")
