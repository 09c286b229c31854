"""Chooses the number of steps that fit into a wall time, from a short trial."""

import contextlib
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sa_jax import pruning
from sa_jax.annealing.chain import BLOCK_STEPS
from sa_jax.commands.run import runner
from sa_jax.commands.run.records import Progress
from sa_jax.commands.run.settings import MAX_STEPS, RunConfig
from sa_jax.files.workdirs import write_file
from sa_jax.types import InputError

PLAN = "prune.json"
# Steps of score search and proposals of a trial.
TRIAL_SEARCH_STEPS, TRIAL_STEPS = 200, 1_000
# Of the time left after the trial, the share for the steps; evaluation and the report take the rest, besides as
# much time as compiling took. And the largest share of that for score search.
FOR_STEPS, FOR_SEARCH = 0.8, 0.6
# The share of the time of compiling that is left if the programs were kept.
WARM_SHARE = 0.4
# The annealing runs that a search for the density makes, about.
PROBES = 8


class Speed(NamedTuple):
    """The speed of a run.

    Attributes:
      search: steps of score search in a second; 0 if there is none.
      anneal: proposals of each chain in a second.
      seconds_before: wall time of loading and compiling, for the run that follows.
    """

    search: float
    anneal: float
    seconds_before: float


class _Measured(Exception):
    """A trial has measured all."""


def measure(config: RunConfig) -> Speed:
    """Measures the speed of a run by its first steps, in a folder of its own.

    Args:
      config: the settings of the run.
    """
    begun, in_steps = time.perf_counter(), 0.0
    rates: dict[bool, float] = {}

    def note(progress: Progress) -> None:
        nonlocal in_steps
        rates[progress.searching] = progress.steps_per_second
        in_steps += progress.step / progress.steps_per_second if progress.step == progress.num_steps else 0
        if not progress.searching:
            raise _Measured

    trial = dataclasses.replace(
        config, num_steps=TRIAL_STEPS, score_steps=TRIAL_SEARCH_STEPS, checkpoint_seconds=0.0
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_Measured):
        runner.run(trial, Path(folder), on_progress=note)
    before = time.perf_counter() - begun - in_steps
    if getattr(jax.config, "jax_compilation_cache_dir", None):  # where the programs of the trial are now
        before *= WARM_SHARE
    return Speed(rates.get(True, 0.0), rates[False], before)


def steps_for(
    speed: Speed, seconds: float, most_search_steps: int, probes: int = 1, has_rival: bool = False
) -> tuple[int, int]:
    """Returns the steps of score search and the proposals of each chain that fit into a time.

    There are at least as many as in a trial, however short the time.

    Args:
      speed: the speed of the run.
      seconds: wall time for loading, compiling, all steps and the evaluation.
      most_search_steps: steps of a whole score search.
      probes: number of annealing runs that share the time; each compiles its programs.
      has_rival: whether a rival gets as much time as each of them.

    >>> steps_for(Speed(search=100.0, anneal=1_000.0, seconds_before=10.0), 110.0, 4_000)
    (4000, 40000)
    >>> steps_for(Speed(search=100.0, anneal=1_000.0, seconds_before=10.0), 1.0, 4_000)
    (200, 1000)
    """
    left = max(seconds / probes - speed.seconds_before, 0.0) * FOR_STEPS / (2 if has_rival else 1)
    search_steps = min(max(int(FOR_SEARCH * left * speed.search), TRIAL_SEARCH_STEPS), most_search_steps)
    left -= search_steps / speed.search if speed.search else 0.0
    blocks = int(left * speed.anneal / BLOCK_STEPS)
    return search_steps, min(max(blocks, TRIAL_STEPS // BLOCK_STEPS), MAX_STEPS // BLOCK_STEPS) * BLOCK_STEPS


def planned(
    config: RunConfig,
    total: int,
    num_samples: int,
    minutes: float | None,
    deadline: float,
    folder: Path,
    overwrite: bool,
    on_message: Callable[[str], None],
    num_runs: int = 1,
) -> RunConfig:
    """Returns the settings with the steps that fit into a wall time, and stores them in the folder of the run.

    A run that began before gets those that it had.

    Args:
      config: the settings of the run.
      total: number of branches.
      num_samples: number of training samples.
      minutes: wall time; None for the steps that the run itself chooses.
      deadline: when the time ends, as `time.monotonic` counts.
      folder: folder of the run.
      overwrite: whether an unfinished run starts again.
      on_message: called with messages for the user.
      num_runs: number of runs that share the time.

    Raises:
      InputError: the run that began in the folder had another wall time.
    """
    earlier = _read(folder / PLAN) if is_begun(folder) and not overwrite else None
    if earlier is None:
        chosen: dict[str, Any] = {"num_chains": config.num_chains}
        if minutes is not None:
            on_message("measuring how many steps fit into the time")
            speed, probes = measure(config), PROBES if config.density is None else num_runs
            most = pruning.score_steps(config.options, total, num_samples)
            seconds = deadline - time.monotonic()
            if seconds < probes * speed.seconds_before:
                on_message(f"{minutes:g} min are too short: making the fewest steps")
            steps = steps_for(speed, seconds, most, probes, config.rival is not None)
            chosen |= dict(zip(("score_steps", "num_steps"), steps, strict=True))
        earlier = {"minutes": minutes} | chosen
        write_file(folder / PLAN, json.dumps(earlier, indent=1) + "\n")
    if earlier["minutes"] != minutes:
        raise InputError(
            f"{folder} holds a run with --minutes {earlier['minutes']}, not {minutes}: choose another "
            "workdir, or add --overwrite to start again"
        )
    return dataclasses.replace(config, **{name: value for name, value in earlier.items() if name != "minutes"})


def is_begun(folder: Path) -> bool:
    """Returns whether a folder holds a run, or runs at several densities, that began, finished or not."""
    begun = (folder / runner.CHECKPOINTS).is_dir() or (folder / "result.json").exists()
    return begun or any(folder.glob("density_*"))


def _read(path: Path) -> dict[str, Any] | None:
    """The plan of an unfinished run; None if it cannot be read."""
    try:
        plan = json.loads(path.read_text())
        return plan if isinstance(plan, dict) and "minutes" in plan else None
    except (OSError, ValueError):
        return None
