"""Files that are read to their end: with as much memory as they have bytes."""

import tracemalloc

import pytest

from sa_jax.files.bounded import Bounded


def test_no_memory_is_taken_for_more_than_there_is(tmp_path):
    (tmp_path / "file").write_bytes(b"one\ntwo\n")
    with Bounded(tmp_path / "file") as file:
        tracemalloc.start()
        assert file.read(2**40) == b"one\ntwo\n"
        assert tracemalloc.get_traced_memory()[1] < 2**16
        tracemalloc.stop()
        assert file.read(3) == file.read() == b""
        file.seek(1)
        assert (file.read(1), file.readline(), file.read(None)) == (b"n", b"e\n", b"two\n")
        file.seek(99)
        assert file.read(1) == b""
    with pytest.raises(FileNotFoundError):
        Bounded(tmp_path / "other")
