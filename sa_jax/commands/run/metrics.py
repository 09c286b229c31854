"""Writes the progress of a run to `metrics.jsonl`, one JSON object a line, for tools that draw curves."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sa_jax.commands.run.records import Progress
from sa_jax.files.workdirs import write_file
from sa_jax.types import InputError

FILE = "metrics.jsonl"
STAGES = ("training", "score search", "annealing")


def metrics(progress: Progress) -> dict[str, Any]:
    """Returns the fields of a `Progress` that have a value, by name.

    >>> metrics(Progress("annealing", 1_000, 2_000, 5e4, 0.5, 0.4, 1e-3, 0.25))["best_energy"]
    0.4
    """
    fields = progress._asdict()
    if not progress.probe:
        del fields["probe"]
    return {name: value for name, value in fields.items() if value is not None}


def writing_to(folder: Path, resumes: bool = True) -> Callable[[Progress], None]:
    """Returns a function that appends a line to `metrics.jsonl` of a folder.

    A resumed run makes steps again that were made after its last checkpoint. The earlier lines of these steps are
    removed, so that each step has one line.

    Args:
      folder: the work directory.
      resumes: whether the run may resume; if not, the first call replaces the file of an earlier run.

    The function raises `InputError` if the file cannot be written.
    """
    path, begun = folder / FILE, time.monotonic()
    is_first = True

    def write(progress: Progress) -> None:
        nonlocal is_first
        if is_first and path.exists():
            earlier = path.read_text().splitlines() if resumes else []
            kept = [line for line in earlier if _place(line) < _order(metrics(progress))]
            write_file(path, "".join(f"{line}\n" for line in kept))
        is_first = False
        line = json.dumps({"seconds": round(time.monotonic() - begun, 3)} | metrics(progress))
        try:
            with path.open("a") as file:
                file.write(f"{line}\n")
        except OSError as error:
            raise InputError(f"{path} could not be written: {error.strerror}") from None

    return write


def remove_unused(folder: Path) -> None:
    """Removes the file of a run that has neither ended nor saved anything from which it would resume."""
    if not (folder / "result.json").exists() and not (folder / "checkpoints").exists():
        (folder / FILE).unlink(missing_ok=True)


def _place(line: str) -> tuple[float, int, int]:
    """Where a line of the file is in the order of a run; at its end, so that it is removed, if it is damaged."""
    try:
        return _order(json.loads(line))
    except (ValueError, KeyError, TypeError):
        return math.inf, 0, 0


def _order(fields: dict[str, Any]) -> tuple[float, int, int]:
    return fields.get("probe", 0), STAGES.index(fields["stage"]), fields["step"]
