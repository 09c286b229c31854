"""Folders of results: all files are written, or none is."""

import json
import os

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


def test_where_results_cannot_be_written_is_said_before(tmp_path):
    workdirs.check(tmp_path / "new", overwrite=False)
    (tmp_path / "result.json").write_text("{}")
    with refusal("already holds a run's result; name another workdir, or add --overwrite"):
        workdirs.check(tmp_path, overwrite=False)
    workdirs.check(tmp_path, overwrite=True)
    with refusal("cannot be made", "result.json is a file"):
        workdirs.check(tmp_path / "result.json" / "run", overwrite=False)
    with refusal("cannot be written"):
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
