"""Archives of plain arrays: what is written is read, and all else is refused."""

import gc
import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sa_jax.files.npz import npz_bytes, read_npz
from tests.conftest import refusal

X = np.arange(60, dtype=np.float32).reshape(20, 3)
WHOLE = {"x": X, "y": np.arange(20) % 3}


def save(folder, arrays):
    path = folder / "own.npz"
    np.savez(path, **arrays)
    return path


def test_what_is_written_is_read(tmp_path):
    arrays = WHOLE | {"a/b.c": np.zeros((0, 2), np.int8), "mask": np.array([[True, False]])}
    (tmp_path / "own.npz").write_bytes(npz_bytes(arrays))
    found = read_npz(tmp_path / "own.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
    with refusal(f"{tmp_path / 'other.npz'} cannot be read: No such file"):
        read_npz(tmp_path / "other.npz")


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path):
    sprung = tmp_path / "sprung"
    path = save(tmp_path, {"x": X, "y": np.array([Trap(sprung)] * 20)})
    with refusal(str(path), "not an .npz of plain arrays"):
        read_npz(path)
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with refusal(str(path), "not an .npz of plain arrays"):
        read_npz(path)
    assert not sprung.exists()


def test_an_archive_with_objects_is_refused(tmp_path):
    path = save(tmp_path, {**WHOLE, "z": np.array([[None] * 3] * 4)})
    with refusal(str(path), "Object arrays cannot be loaded"):
        read_npz(path)


def test_a_single_array_is_no_archive(tmp_path):
    with (tmp_path / "net.npz").open("wb") as file:
        np.save(file, X)
    with refusal(f"{tmp_path / 'net.npz'} is damaged or not an .npz", "it is a single array"):
        read_npz(tmp_path / "net.npz")


def saved(tmp_path, arrays):
    return save(tmp_path, arrays).read_bytes()


def plain_array(tmp_path):
    np.save(tmp_path / "plain.npy", X)
    return (tmp_path / "plain.npy").read_bytes()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (lambda folder: b"", "is damaged or not an .npz of plain arrays"),
        (lambda folder: b"x,y\n1,2\n", "is damaged or not an .npz of plain arrays"),
        (lambda folder: saved(folder, WHOLE)[:-100], "is damaged or not an .npz of plain arrays"),
        (lambda folder: saved(folder, WHOLE).replace(X[:4].tobytes(), X[1:5].tobytes()), "is damaged"),
        # numpy's own words on so long a header fill three lines
        (
            lambda folder: saved(folder, {"x": np.zeros(1, [(f"column {i}", "f4") for i in range(999)])}),
            "is damaged",
        ),
        (plain_array, "it is a single array"),
    ],
    ids=["empty", "text", "truncated", "altered", "a header too long", "one array"],
)
def test_what_is_no_archive_of_arrays_is_refused(tmp_path, content, problem):
    path = tmp_path / "own.npz"
    path.write_bytes(content(tmp_path))
    with refusal(str(path), problem):
        read_npz(path)
    gc.collect()  # so that a file left open is noticed here


def test_any_byte_order_and_memory_layout_is_read(tmp_path):
    arrays = {
        "f": X.astype(">f4"),
        "u": np.arange(3, dtype=">u8"),
        "columns": np.asfortranarray(X),
        "part": X[::2],
    }
    found = read_npz(save(tmp_path, arrays))
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def lying(shape, in_central_directory=False):
    """An archive of an array whose header declares more than there is."""
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "<f8", "fortran_order": False, "shape": shape})
    header = content.tell()
    content.write(bytes(32))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("x.npy", content.getvalue())
    found = archive.getvalue()
    if in_central_directory:
        length, place = header + 8 * shape[0], found.rindex(b"PK\x01\x02") + 24
        found = found[:place] + length.to_bytes(4, "little") + found[place + 4 :]
    return found


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (lying((10**12,)), "'x.npy' in it has 160 bytes, but needs 8,000,000,000,128"),
        (lying((3,)), "'x.npy' in it has 160 bytes, but needs 152"),
        (lying((5 * 10**8,), True), "'x.npy' in it is not as long as it declares"),
        (lying((4,))[:-10] + (2**32 - 100).to_bytes(4, "little") + lying((4,))[-6:], ""),
    ],
    ids=["more", "less", "twice", "a long directory"],
)
def test_no_memory_is_taken_for_what_a_header_declares(tmp_path, content, problem):
    path = tmp_path / "own.npz"
    path.write_bytes(content)
    tracemalloc.start()
    with refusal(str(path), problem):
        read_npz(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_an_archive_of_other_files_is_refused(tmp_path):
    path = save(tmp_path, WHOLE)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", "{}")
    with refusal(str(path), "'config.json' in it is not an array"):
        read_npz(path)
    with pytest.warns(UserWarning, match=r"format 3\.0"):
        np.savez(path, x=np.zeros(2, [("\u5217", "f4")]))
    with refusal(str(path), "'x.npy' in it is not a plain array, but of the format (3, 0)"):
        read_npz(path)
