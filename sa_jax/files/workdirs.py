"""A run's folder: nothing half written, no earlier result lost, no trace of a run that failed."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sa_jax.types import InputError

FILES = ("masks.npz", "weights.npz", "survival.npz", "operative.gin", "trace.csv", "report.html", "result.json")
# What a run that was stopped leaves until it is done.
PARTIAL = ("partial_masks.npz", "partial_report.html")


def check(workdir: Path, overwrite: bool) -> None:
    """Raises `InputError` where results could not be written, or would replace an earlier run's."""
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
    """Makes the folder, tries a write in it, and returns the folders made, innermost first.

    Raises:
      InputError: the folder cannot be made or written.
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
    """Removes the folders that `make` made, as far as they are still empty."""
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()


def write(workdir: Path, files: Mapping[str, bytes]) -> None:
    """Writes all files aside before it renames the first, so that none is ever half there.

    Of an earlier run's files, those that are not written anew are removed.

    Raises:
      InputError: the disk is full or the folder has become unwritable.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=workdir) as aside:
            for name, content in files.items():
                with open(Path(aside) / name, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            # Without its result a mix of old and new files can never pass for a finished run.
            (workdir / "result.json").unlink(missing_ok=True)
            for name in {*FILES, *PARTIAL} - set(files):
                (workdir / name).unlink(missing_ok=True)
            for name in files:
                os.replace(Path(aside) / name, workdir / name)
    except OSError as error:
        raise InputError(f"the results could not be written to {workdir}: {error.strerror}") from None


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a file aside and renames it, so that it is never half there.

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


@contextlib.contextmanager
def only_one(workdir: Path) -> Iterator[None]:
    """Lets one process at a time write to a folder; raises `InputError` in the others."""
    with open(workdir / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another command is writing to {workdir}") from None
        yield
