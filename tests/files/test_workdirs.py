"""Folders of results: all files are written, or none is."""

import errno
import fcntl
import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.files import workdirs
from tests.conftest import refusal


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_folders_are_made_and_unmade(tmp_path):
    (tmp_path / "there").mkdir()
    workdir = tmp_path / "there" / "a" / "b"
    made = workdirs.make(workdir)
    assert made == [workdir, workdir.parent]
    (workdir / "file").write_text("")
    workdirs.unmake(made)
    assert workdir.is_dir()  # not empty
    (workdir / "file").unlink()
    workdirs.unmake(made)
    assert names_in(tmp_path / "there") == []


def test_a_folder_is_removed_if_nothing_was_written(tmp_path):
    with workdirs.writing(tmp_path / "a" / "b") as at_end:
        assert (tmp_path / "a" / "b").is_dir()
        at_end.callback(lambda: (tmp_path / "a" / "b" / "part").unlink())
        (tmp_path / "a" / "b" / "part").write_text("")
    assert names_in(tmp_path) == []
    with pytest.raises(KeyboardInterrupt), workdirs.writing(tmp_path / "c"):
        (tmp_path / "c" / "file").write_text("")
        raise KeyboardInterrupt
    assert names_in(tmp_path / "c") == ["file"]


def test_a_process_that_ends_by_force_gives_its_folders_back(tmp_path):
    with workdirs.writing(tmp_path / "a"), workdirs.writing(tmp_path / "a" / "b"):
        workdirs.abandon()
        assert names_in(tmp_path) == []
    workdirs.abandon()


def test_where_results_cannot_be_written_is_said_before(tmp_path):
    workdirs.check(tmp_path / "new", overwrite=False)
    (tmp_path / "result.json").write_text("{}")
    with refusal("already holds a run's result; name another workdir, or add --overwrite"):
        workdirs.check(tmp_path, overwrite=False)
    workdirs.check(tmp_path, overwrite=True)
    with refusal("folder ", "cannot be made", "result.json is a file"):
        workdirs.make(tmp_path / "result.json" / "run")
    (tmp_path / "masks.npz").mkdir()
    with refusal("masks.npz in it is a folder"):
        workdirs.check(tmp_path, overwrite=True)


def test_a_write_replaces_all_files_of_an_earlier_run(tmp_path):
    for name in (*workdirs.FILES, *workdirs.PARTIAL, "mine.txt"):
        (tmp_path / name).write_bytes(b"old")
    workdirs.write(tmp_path, {"masks.npz": b"new", "result.json": b"{}"})
    assert names_in(tmp_path) == ["masks.npz", "mine.txt", "result.json"]
    assert (tmp_path / "masks.npz").read_bytes() == b"new"


def test_a_write_that_fails_changes_nothing(tmp_path, monkeypatch):
    (tmp_path / "masks.npz").write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with refusal("the results could not be written to", "No space left on device"):
        workdirs.write(tmp_path, {"masks.npz": b"new", "result.json": b"{}"})
    assert names_in(tmp_path) == ["masks.npz"] and (tmp_path / "masks.npz").read_bytes() == b"old"


def test_a_single_file_is_never_partly_written(tmp_path):
    workdirs.write_file(tmp_path / "page.html", "text")
    workdirs.write_file(tmp_path / "page.html", b"bytes")
    assert names_in(tmp_path) == ["page.html"] and (tmp_path / "page.html").read_text() == "bytes"
    (tmp_path / "folder").mkdir()
    with refusal("folder could not be written"):
        workdirs.write_file(tmp_path / "folder", "text")
    assert names_in(tmp_path) == ["folder", "page.html"]


def test_only_one_writes_to_a_folder(tmp_path):
    with workdirs.only_one(tmp_path), refusal("another command is writing to"), workdirs.only_one(tmp_path):
        pytest.fail("both may write")
    with workdirs.only_one(tmp_path):
        pass
    assert names_in(tmp_path) == []


HOLD = """
import sys, time
from pathlib import Path
from sa_jax.files import workdirs
with workdirs.only_one(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_lock_ends_with_its_process(tmp_path):
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        with refusal("another command is writing to"), workdirs.writing(tmp_path):
            pytest.fail("both may write")
        process.kill()
    assert names_in(tmp_path) == [".lock"]
    with workdirs.writing(tmp_path):
        pass
    assert names_in(tmp_path) == []


def test_a_lock_that_was_removed_meanwhile_is_taken_again(tmp_path, monkeypatch):
    flock, calls = fcntl.flock, []

    def late(file, operation):
        calls.append(file)
        if len(calls) == 1:  # the command that held the lock ends, and removes it, just before
            (tmp_path / ".lock").unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with workdirs.only_one(tmp_path), refusal("another command is writing to"), workdirs.only_one(tmp_path):
        pytest.fail("both may write")
    assert len(calls) == 3


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_systems_without_locks_are_told_and_used(tmp_path, monkeypatch, number):
    def refuse(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    messages = []
    with workdirs.writing(tmp_path / "run", messages.append):
        (tmp_path / "run" / "file").write_text("")
    (message,) = messages
    assert message.startswith("locking is not available in ") and os.strerror(number) in message
    assert names_in(tmp_path / "run") == ["file"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "place",
    [
        lambda bad: {"whole": 1, "loss": bad},
        lambda bad: {"loss": [0.5, {"deep": (1, bad)}]},
        lambda bad: {"loss": np.array([[1.0, bad]], np.float32)},
        lambda bad: {"loss": jnp.array([1.0, bad], jnp.bfloat16)},
    ],
)
def test_results_that_are_not_finite_are_refused(bad, place):
    with refusal("result.json, loss", " would hold NaN or infinite values: it was not written"):
        workdirs.check_finite("result.json", place(bad))


def test_results_that_are_finite_are_not_refused():
    arrays = {"mask": np.array([True]), "bits": np.zeros(3, np.uint8), "none": np.zeros((0, 2))}
    values = {"text": "nan", "none": None, "flag": True, "many": [1, 2.5, "inf"], "seed": 2**70}
    workdirs.check_finite("result.json", arrays | values)
    workdirs.check_finite("result.json", [])


def test_results_are_read_of_finished_runs_only(tmp_path):
    with refusal("holds no finished run; it has no result.json"):
        workdirs.read_result(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with refusal("holds an unfinished run: finish it first"):
        workdirs.read_result(tmp_path)
    for content in ("{", "[1]", "\xff"):
        (tmp_path / "result.json").write_bytes(content.encode("latin1"))
        with refusal("result.json is not a result of sa-jax run"):
            workdirs.read_result(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({"seed": 1}))
    assert workdirs.read_result(tmp_path) == {"seed": 1}
