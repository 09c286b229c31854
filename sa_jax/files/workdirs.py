"""Atomic writes of an output directory.

Files are written under temporary names and then renamed, so that a failed run leaves no partial results and loses
no earlier ones.
"""

import contextlib
import errno
import fcntl
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from sa_jax.types import InputError

ARRAYS = ("masks.npz", "weights.npz", "survival.npz", "scores.npz")
FILES = (*ARRAYS, "operative.gin", "trace.csv", "report.html", "result.json")
# Files that a stopped run leaves until it is finished.
PARTIAL = ("partial_masks.npz", "partial_report.html")


# Folders that this process writes to, each with what remains to be done at the end.
_written_to: list[contextlib.ExitStack] = []
_closing = threading.RLock()


def check(workdir: Path, overwrite: bool) -> None:
    """Raises `InputError` if results would replace those of an earlier run, or folders of their names."""
    if os.path.exists(workdir / "result.json") and not overwrite:
        raise InputError(f"{workdir} already holds a run's result; name another workdir, or add --overwrite")
    for name in FILES:
        if os.path.isdir(workdir / name):
            raise InputError(f"{workdir} cannot be written: {name} in it is a folder")


@contextlib.contextmanager
def writing(
    workdir: Path, on_message: Callable[[str], None] = lambda message: None, alone: bool = True
) -> Iterator[contextlib.ExitStack]:
    """Creates a folder and lets only this command write to it, until the context ends.

    Folders that were created, and that are empty in the end, are removed.

    Args:
      workdir: the folder.
      on_message: called with a message for the user if the file system has no locks.
      alone: whether to lock the folder. Of several processes that write to it together, one locks it.

    Yields:
      Callbacks that are called at the end, also if `abandon` ends the context.

    Raises:
      InputError: the folder cannot be created or written, or another command is writing to it.
    """
    at_end = contextlib.ExitStack()
    try:
        at_end.callback(unmake, make(workdir))
        if alone:
            at_end.enter_context(only_one(workdir, on_message))
        _written_to.append(at_end)
        at_end.callback(_written_to.remove, at_end)
        yield at_end
    finally:
        with _closing:
            at_end.close()


def abandon() -> None:
    """Ends all contexts of `writing`, from any thread, for a process that is about to end by force."""
    with _closing:
        while _written_to:
            _written_to[-1].close()


def make(folder: Path) -> list[Path]:
    """Creates a folder, tests that it can be written, and returns all folders created, innermost first.

    Raises:
      InputError: the folder cannot be created or written.
    """
    made: list[Path] = []
    try:
        existing = next(one for one in (folder, *folder.absolute().parents) if os.path.exists(one))
        if not existing.is_dir():
            raise InputError(f"folder {folder} cannot be made: {existing} is a file")
        made = [one for one in (folder, *folder.parents) if not os.path.exists(one)]
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        unmake(made)
        raise InputError(f"folder {folder} cannot be written: {error.strerror}") from None
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


def check_finite(name: str, values: Any) -> None:
    """Raises `InputError` if a result that is about to be written holds NaN or infinite values.

    Args:
      name: name of the file.
      values: numbers, texts, NumPy arrays of any shape, or nested dictionaries and lists of them.
    """
    if isinstance(values, Mapping):
        for part, value in values.items():
            check_finite(f"{name}, {part}", value)
    elif isinstance(values, list | tuple):
        for value in values:
            check_finite(name, value)
    elif not isinstance(values, str | int | None) and not np.isfinite(values).all():
        raise InputError(f"{name} would hold NaN or infinite values: it was not written")


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
def only_one(workdir: Path, on_message: Callable[[str], None] = lambda message: None) -> Iterator[None]:
    """Lets only one process at a time write to a folder; raises `InputError` in the others.

    The lock belongs to the operating system, which frees it however the process ends.

    Args:
      workdir: the folder.
      on_message: called with a message for the user if the file system has no locks.
    """
    path = workdir / ".lock"
    while True:
        with _opened(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise InputError(f"another command is writing to {workdir}") from None
                on_message(
                    f"locking is not available in {workdir} ({error.strerror}); "
                    "make sure that no other command writes to it"
                )
            if not _is_at(path, file.fileno()):
                continue  # the command that had locked it has removed it
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _opened(path: Path) -> IO[str]:
    try:
        return path.open("w")
    except OSError as error:
        raise InputError(f"{path.parent} cannot be written: {error.strerror}") from None


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
