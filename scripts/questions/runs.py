"""Runs configs as a user would, and saves what they gave: for the questions of accuracy."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from sa_jax.commands.bench import proposals

from . import figures
from .saved import RESULTS, ROOT, config_path, load, save

SEEDS = (0, 1, 2)
FIELDS = (
    "density",
    "seed",
    "kept",
    "total",
    "test_accuracy",
    "validation_accuracy",
    "num_samples",
    "num_steps",
    "num_chains",
    "start",
    "score_steps",
    "estimates",
    "parts",
    "move",
    "uses_gradients",
    "moves_weights",
    "dense_test_accuracy",
    "magnitude_test_accuracy",
    "random_test_accuracy",
    "versions",
)


class Task(NamedTuple):
    """A run to make: the name of its config, and the two settings that are overridden."""

    config: str
    density: float
    seed: int


def measure(name: str, known: list[str], tasks: Iterable[Task], jobs: int, drawn: Task | None = None) -> None:
    """Makes the runs that are not saved yet, each in a process of its own, `jobs` at the same time.

    All is saved after every run, so that a stopped measurement resumes where it stopped. Runs of other code or of
    another config are made again, and replaced when that is done. Runs already saved stay if their config is one
    of `known`. The masks of the run `drawn` are kept for the picture.
    """
    code = figures.sources_digest(name)
    runs = {task_of(run): run for run in saved_runs(name) if run["config"] in known}
    missing = [task for task in tasks if runs.get(task, {}).get("code") != code]
    with ThreadPoolExecutor(jobs) as executor:
        futures = [executor.submit(one_run, task, task == drawn) for task in missing]
        for number, future in enumerate(as_completed(futures), 1):
            run = future.result()
            runs[task_of(run)] = run | {"code": code}
            order = sorted(runs, key=lambda task: (known.index(task.config), -task.density, task.seed))
            save(name, {"runs": [runs[task] for task in order]})
            print(
                f"{number}/{len(missing)}  {run['config']}, density {run['density']}, seed {run['seed']}: "
                f"{run['test_accuracy']:.4f}, {run['cpu_seconds']:.0f} s of CPU time",
                flush=True,
            )


def task_of(run: dict[str, Any]) -> Task:
    """The task that a saved run answers."""
    return Task(run["config"], run["density"], run["seed"])


def saved_runs(name: str) -> list[dict[str, Any]]:
    """The runs that are saved already."""
    return load(name)["runs"] if (RESULTS / f"{name}.json").exists() else []


def one_run(task: Task, keeps_masks: bool) -> dict[str, Any]:
    """Makes a run, and returns what is kept of its result."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, str(ROOT / "scripts/run.py"), f"--gin_file={config_path(task.config)}"]
        # A rival would double the seconds, which are to be those of our own search.
        settings = f"DENSITY={task.density}", f"SEED={task.seed}", "run.rival=None"
        command += [f"--gin_bindings={setting}" for setting in settings]
        seconds = seconds_of([*command, f"--workdir={workdir}"])
        result = json.loads((Path(workdir) / "result.json").read_text())
        if keeps_masks:
            (RESULTS / "masks.npz").write_bytes((Path(workdir) / "masks.npz").read_bytes())
    kept = {name: result[name] for name in FIELDS}
    return {"config": task.config} | kept | seconds | {"machine": proposals.machine()["processor"]}


def seconds_of(command: list[str]) -> dict[str, float]:
    """Runs a command, and returns the seconds of all of it: those of starting, loading and compiling too.

    No compiled program of an earlier call is taken, so these are the seconds of a first call.
    """
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT, env=environment
    )
    said = process.stderr.read() if process.stderr else b""
    _, status, used = os.wait4(process.pid, 0)
    wall_seconds, process.returncode = time.perf_counter() - start, os.waitstatus_to_exitcode(status)
    if status:
        raise SystemExit(said.decode())
    return {"cpu_seconds": used.ru_utime + used.ru_stime, "wall_seconds": wall_seconds}
