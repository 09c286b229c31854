"""Runs configs as a user would, and saves what they gave: for the questions of accuracy."""

import hashlib
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

    All is saved after every run, so that a stopped measurement resumes where it stopped. The runs of a changed
    config are made again. Runs already saved stay if their config is one of `known`. The masks of the run `drawn`
    are kept for the picture.
    """
    digests = {config: hashlib.sha256(config_path(config).read_bytes()).hexdigest() for config in known}
    runs = [run for run in saved_runs(name) if digests.get(run["config"]) == run["config_sha256"]]
    done = {(run["config"], run["density"], run["seed"]) for run in runs}
    missing = [task for task in tasks if task not in done]
    with ThreadPoolExecutor(jobs) as executor:
        futures = [executor.submit(one_run, task, task == drawn) for task in missing]
        for number, future in enumerate(as_completed(futures), 1):
            run = future.result()
            runs.append(run | {"config_sha256": digests[run["config"]]})
            runs.sort(key=lambda run: (known.index(run["config"]), -run["density"], run["seed"]))
            save(name, {"runs": runs})
            print(
                f"{number}/{len(missing)}  {run['config']}, density {run['density']}, seed {run['seed']}: "
                f"{run['test_accuracy']:.4f}, {run['cpu_seconds']:.0f} s of CPU time",
                flush=True,
            )


def saved_runs(name: str) -> list[dict[str, Any]]:
    """The runs that are saved already."""
    return load(name)["runs"] if (RESULTS / f"{name}.json").exists() else []


def one_run(task: Task, keeps_masks: bool) -> dict[str, Any]:
    """Makes a run, and returns what is kept of its result."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, str(ROOT / "scripts/run.py"), f"--gin_file={config_path(task.config)}"]
        command += [f"--gin_bindings=DENSITY={task.density}", f"--gin_bindings=SEED={task.seed}"]
        seconds = seconds_of([*command, f"--workdir={workdir}"])
        result = json.loads((Path(workdir) / "result.json").read_text())
        if keeps_masks:
            (RESULTS / "masks.npz").write_bytes((Path(workdir) / "masks.npz").read_bytes())
    kept = {name: result[name] for name in FIELDS}
    return {"config": task.config} | kept | seconds | {"machine": proposals.machine()["processor"]}


def seconds_of(command: list[str]) -> dict[str, float]:
    """Runs a command, and returns the seconds of all of it: those of starting, loading and compiling too."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
    said = process.stderr.read() if process.stderr else b""
    _, status, used = os.wait4(process.pid, 0)
    wall_seconds, process.returncode = time.perf_counter() - start, os.waitstatus_to_exitcode(status)
    if status:
        raise SystemExit(said.decode())
    return {"cpu_seconds": used.ru_utime + used.ru_stime, "wall_seconds": wall_seconds}
