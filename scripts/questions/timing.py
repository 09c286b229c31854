"""How calls are timed: on one core, in turns."""

import os
import time
from collections.abc import Callable
from typing import Any

import jax

SAMPLES = 2_000
ROUNDS = 7


def use_one_core() -> None:
    """Binds this process to one core, as each chain of a run is."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def take_turns(
    calls: dict[Any, Callable[[], Any]], clock: Callable[[], float] = time.perf_counter, rounds: int = ROUNDS
) -> dict[Any, list[float]]:
    """Seconds of each call by this clock, round by round, after one that compiles."""
    seconds: dict[Any, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in calls.items():
            start = clock()
            jax.block_until_ready(call())
            seconds[name].append(clock() - start)
    return seconds
