"""Atomic writes of an output directory.

Files are written under temporary names and then renamed, so that a failed run leaves no partial results and loses
no earlier ones.
"""

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sa_jax.types import InputError

FILES = ("masks.npz", "weights.npz", "survival.npz", "operative.gin", "trace.csv", "report.html", "result.json")
# Files that a stopped run leaves until it is finished.
PARTIAL = ("partial_masks.npz", "partial_report.html")


def check(workdir: Path, overwrite: bool) -> None:
    """Raises `InputError` if results cannot be written to a folder, or would replace those of an earlier run."""
    if os.path.exists(workdir / "result.json") and not overwrite:
        raise InputError(f"{workdir} already holds a run's result; name another workdir, or add --overwrite")
    for name in FILES:
        if os.path.isdir(workdir / name):
            raise InputError(f"workdir {workdir} cannot be written: {name} in it is a folder")
    existing = next(folder for folder in (workdir, *workdir.absolute().parents) if os.path.exists(folder))
    if not existing.is_dir():
        raise InputError(f"workdir {workdir} cannot be made: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"workdir {workdir} cannot be written: no permission to write in {existing}")


def make(workdir: Path) -> list[Path]:
    """Creates a folder, tests that it can be written, and returns all folders created, innermost first.

    Raises:
      InputError: the folder cannot be created or written.
    """
    made: list[Path] = []
    try:
        made = [folder for folder in (workdir, *workdir.parents) if not os.path.exists(folder)]
        workdir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=workdir).close()
    except OSError as error:
        unmake(made)
        raise InputError(f"workdir {workdir} cannot be written: {error.strerror}") from None
    return made


def unmake(made: Sequence[Path]) -> None:
    """Removes those of the folders that `make` created which are still empty."""
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()


def write(workdir: Path, files: Mapping[str, bytes]) -> None:
    """Writes all files under temporary names, then renames them, so that no file is ever partly written.

    Files of an earlier run that are not written again are removed.

    Raises:
      InputError: the disk is full, or the folder can no longer be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=workdir) as aside:
            for name, content in files.items():
                with open(Path(aside) / name, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            # A folder without result.json does not count as a finished run, so that a mix of old and new files
            # cannot.
            (workdir / "result.json").unlink(missing_ok=True)
            for name in {*FILES, *PARTIAL} - set(files):
                (workdir / name).unlink(missing_ok=True)
            for name in files:
                os.replace(Path(aside) / name, workdir / name)
    except OSError as error:
        raise InputError(f"the results could not be written to {workdir}: {error.strerror}") from None


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a file under a temporary name, then renames it, so that it is never partly written.

    Raises:
      InputError: the disk is full or the folder cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise InputError(f"{path} could not be written: {error.strerror}") from None


def read_result(workdir: Path) -> dict[str, Any]:
    """Reads the figures and settings of a finished run, the `result.json` in its folder.

    Raises:
      InputError: the folder holds no finished run, or the file is damaged.
    """
    path = workdir / "result.json"
    if not path.is_file():
        unfinished = (workdir / "checkpoints").is_dir()
        what = "holds an unfinished run: finish it first" if unfinished else "holds no finished run"
        raise InputError(f"{workdir} {what}; it has no result.json")
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError):
        result = None
    if not isinstance(result, dict):
        raise InputError(f"{path} is not a result of sa-jax run")
    return result


@contextlib.contextmanager
def only_one(workdir: Path) -> Iterator[None]:
    """Lets only one process at a time write to a folder; raises `InputError` in the others."""
    with open(workdir / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another command is writing to {workdir}") from None
        yield
