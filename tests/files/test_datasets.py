"""Data sets: their splits, where their files are found, and what is said of a bad file."""

import gzip
import hashlib
import http.server
import os
import socket
import threading
from pathlib import Path

import numpy as np
import pooch
import pytest
from sklearn.datasets import load_digits

from sa_jax.files import datasets
from tests.conftest import refusal

GIVEN = os.environ.get("SA_JAX_DATA")
NAMES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def rows(*splits):
    """All samples with their labels, sorted: equal for equal collections, in whatever order."""
    return sorted((pixels.tobytes(), int(label)) for split in splits for pixels, label in zip(*split, strict=True))


def assert_equal(one, other):
    for split, same in zip(one[1:4], other[1:4], strict=True):
        np.testing.assert_array_equal(split.inputs, same.inputs)
        np.testing.assert_array_equal(split.labels, same.labels)


# digits


def test_digits_are_cut_into_three_splits():
    digits = datasets.load_dataset("digits")
    assert [len(split.labels) for split in digits[1:4]] == [1079, 359, 359]
    assert digits.num_classes == 10 and digits.image_shape == (8, 8)
    pixels, labels = load_digits(return_X_y=True)
    whole = datasets.Split(np.float32(pixels / 16), labels)
    assert rows(*digits[1:4]) == rows(whole)
    assert len(set(rows(whole))) == 1797  # no two alike, so that the splits share none
    assert digits.train.inputs.dtype == np.float32 and digits.train.labels.dtype == np.int32
    assert not np.array_equal(digits.train.labels, labels[:1079])
    for split in digits[1:4]:
        assert set(split.labels) == set(range(10))


def test_digits_are_the_same_every_time():
    digits = datasets.load_dataset("digits")
    assert_equal(datasets.load_dataset("digits"), digits)
    # Figures given for one version of the package hold for the next only on the same samples.
    first = [split.labels[:6].tolist() for split in digits[1:4]]
    assert first == [[1, 3, 5, 3, 4, 5], [9, 5, 7, 6, 6, 3], [9, 6, 5, 3, 1, 3]]


def test_inputs_are_shifted_and_scaled():
    plain, shifted = (
        datasets.load_dataset("digits"),
        datasets.load_dataset("digits", input_mean=0.25, input_std=0.5),
    )
    for split, other in zip(plain[1:4], shifted[1:4], strict=True):
        np.testing.assert_array_equal(other.inputs, (split.inputs - 0.25) / 0.5)
        np.testing.assert_array_equal(other.labels, split.labels)
        assert other.inputs.dtype == np.float32


@pytest.mark.parametrize(("mean", "std"), [(np.nan, 1.0), (np.inf, 1.0), (0.0, 0.0), (0.0, -1.0), (0.0, np.nan)])
def test_senseless_shifts_are_refused(mean, std):
    wrong = f"input_std must be a finite number above 0, not {std}"
    with refusal(wrong if np.isfinite(mean) else f"input_mean must be a finite number, not {mean}"):
        datasets.load_dataset("digits", mean, std)


@pytest.mark.parametrize("name", ["cifar10", "MNIST", "", "digits.tsv", "#y"])
def test_unknown_names_are_refused(name):
    with refusal(f"unknown dataset {name!r}; known: digits, mnist, fashion_mnist, or the path of an .npz or .csv"):
        datasets.load_dataset(name)


# The real sets


def real(name):
    folder = name.replace("_", "-")
    files = [(f"{file}.gz", file) for file in NAMES]
    there = GIVEN and all(any((Path(GIVEN) / folder / form).is_file() for form in forms) for forms in files)
    return pytest.param(
        name, marks=pytest.mark.skipif(not there, reason=f"needs SA_JAX_DATA, a folder that holds {folder}/")
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [real("mnist"), real("fashion_mnist")])
def test_real_images(name):
    loaded = datasets.load_dataset(name)
    folder = Path(GIVEN) / name.replace("_", "-")
    files = []
    for file in NAMES:
        path = folder / file
        content = path.read_bytes() if path.is_file() else gzip.decompress(Path(f"{path}.gz").read_bytes())
        assert hashlib.sha256(content).hexdigest() == datasets.SOURCES[name].hashes[len(files)]
        files.append(np.frombuffer(content, np.uint8, offset=16 if "images" in file else 8))
    assert [len(split.labels) for split in loaded[1:4]] == [50_000, 10_000, 10_000]
    assert loaded.num_classes == 10 and loaded.image_shape == (28, 28) and loaded.name == name

    def pixels(split):
        assert split.inputs.dtype == np.float32 and split.inputs.min() == 0 and split.inputs.max() == 1
        return split._replace(inputs=np.rint(split.inputs * 255).astype(np.uint8))

    train, validation, test = map(pixels, loaded[1:4])
    np.testing.assert_array_equal(test.inputs.ravel(), files[2])
    np.testing.assert_array_equal(test.labels, files[3])
    assert rows(train, validation) == rows(datasets.Split(files[0].reshape(-1, 784), files[1]))
    # A permutation, not the tail of the file.
    assert not np.array_equal(validation.labels, files[1][-10_000:])
    counts = np.bincount(validation.labels)
    assert counts.size == 10 and counts.min() > 800


# Small IDX sets


def idx(array):
    return b"".join(size.to_bytes(4, "big") for size in (0x800 + array.ndim, *array.shape)) + array.tobytes()


def make_files(marker=0):
    """The four files of 12 + 3 images of 2 x 2 pixels, by name; the marker is every test pixel."""
    pixels = np.arange(48, dtype=np.uint8).reshape(12, 2, 2)
    labels = np.arange(12, dtype=np.uint8) % 3
    tests = np.full((3, 2, 2), marker, np.uint8)
    return dict(zip(NAMES, map(idx, (pixels, labels, tests, labels[1:4])), strict=True))


def zipped(content, level=9):
    return gzip.compress(content, level, mtime=0)


def write(folder, files, suffix=".gz"):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / f"{name}{suffix}").write_bytes(zipped(content) if suffix else content)


def source(mirrors=(), marker=0):
    hashes = tuple(hashlib.sha256(content).hexdigest() for content in make_files(marker).values())
    return datasets.Source("mnist", tuple(mirrors), hashes)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The folders that are searched, all of them new, and no mirror of the real data."""
    own, debian, cache = (tmp_path / name for name in ("own", "debian", "cache"))
    own.mkdir()
    monkeypatch.setenv("SA_JAX_DATA", str(own))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(datasets, "DEBIAN_DATA", debian)
    monkeypatch.setattr(pooch, "os_cache", lambda project: cache / project)
    monkeypatch.setitem(datasets.SOURCES, "mnist", source())
    return own, debian, cache


def marker(dataset):
    return int(np.rint(255 * dataset.test.inputs[0, 0]))


@pytest.mark.parametrize("suffixes", [("",), (".gz",), ("", ".gz")], ids=["plain", "gzipped", "mixed"])
def test_small_set_is_read(places, suffixes):
    for number, (name, content) in enumerate(make_files(marker=9).items()):
        suffix = suffixes[number % len(suffixes)]
        path = places[0] / "mnist" / f"{name}{suffix}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(zipped(content) if suffix else content)
    small = datasets.load_dataset("mnist", input_mean=0.5)
    assert [split.inputs.shape for split in small[1:4]] == [(10, 4), (2, 4), (3, 4)]
    assert small.image_shape == (2, 2) and small.num_classes == 3
    np.testing.assert_allclose(small.test.inputs, 9 / 255 - 0.5, rtol=1e-6)
    assert small.test.labels.tolist() == [1, 2, 0]
    joined = np.concatenate([small.train.inputs, small.validation.inputs])
    first_pixels = np.rint(255 * (joined[:, 0] + 0.5)).astype(int)
    assert sorted(first_pixels) == list(range(0, 48, 4))
    labels = np.concatenate([small.train.labels, small.validation.labels])
    np.testing.assert_array_equal(labels, first_pixels // 4 % 3)


IMAGES, LABELS = make_files()[NAMES[0]], make_files()[NAMES[1]]
ZIPPED = zipped(IMAGES)


@pytest.mark.parametrize(
    ("name", "suffix", "content", "problem"),
    [
        (NAMES[0], "", IMAGES[:-1], "truncated: shape [12, 2, 2] needs 48 bytes, the file has 47"),
        (NAMES[1], "", LABELS[:-1], "truncated: shape [12] needs 12 bytes, the file has 11"),
        (NAMES[0], "", IMAGES[:9], "truncated within its header"),
        (NAMES[0], "", b"", "not an IDX file of images or labels: it starts with nothing"),
        (
            NAMES[0],
            "",
            b"\0\0\x0d\x03" + IMAGES[4:],
            "not an IDX file of images or labels: it starts with 00000d03",
        ),
        (NAMES[2], "", b"<html>not here</html>", "not an IDX file of images or labels"),
        (
            NAMES[0],
            "",
            IMAGES + b"\0",
            "longer than its header says: shape [12, 2, 2] needs 48 bytes, the file has 49",
        ),
        (NAMES[0], ".gz", zipped(IMAGES[:-1]), "truncated: shape [12, 2, 2] needs 48 bytes, the file has 47"),
        (NAMES[0], ".gz", ZIPPED[:-12], "damaged or truncated .gz"),
        (NAMES[0], ".gz", ZIPPED[:4], "damaged or truncated .gz"),
        (NAMES[0], ".gz", ZIPPED[:10] + b"\xff" * 9 + ZIPPED[19:], "damaged or truncated .gz"),
        (NAMES[0], ".gz", ZIPPED[:-8] + b"\0\0\0\0" + ZIPPED[-4:], "damaged or truncated .gz"),
        (NAMES[0], ".gz", IMAGES, "damaged or truncated .gz"),
        (NAMES[0], "", LABELS, "contains labels where images were expected; are the two files swapped?"),
        (NAMES[3], "", IMAGES, "contains images where labels were expected; are the two files swapped?"),
        (NAMES[1], "", LABELS[:-1] + b"\x0a", "label 10 is out of range 0..9"),
        (NAMES[3], "", LABELS[:-1] + b"\xff", "label 255 is out of range 0..9"),
        (NAMES[2], "", None, "lacks"),
    ],
)
def test_a_bad_file_and_its_problem_are_named(places, name, suffix, content, problem):
    files = make_files()
    del files[name]
    write(places[0] / "mnist", files)
    if content is not None:
        (places[0] / "mnist" / f"{name}{suffix}").write_bytes(content)
    with refusal(str(places[0] / "mnist"), name, problem):
        datasets.load_dataset("mnist")


def test_labels_must_be_as_many_as_the_images(places):
    write(places[0] / "mnist", {**make_files(), NAMES[1]: idx(np.zeros(11, np.uint8))})
    with refusal("mnist", "y_train [11] must hold one label for each of the 12 rows of x_train"):
        datasets.load_dataset("mnist")


def test_a_bad_folder_is_no_reason_to_look_elsewhere(places, tmp_path, monkeypatch):
    write(places[1] / "mnist", make_files())
    for wrong in (tmp_path / "nowhere", places[1] / "mnist" / f"{NAMES[0]}.gz"):
        monkeypatch.setenv("SA_JAX_DATA", str(wrong))
        with refusal(f"SA_JAX_DATA={wrong} is not a folder"):
            datasets.load_dataset("mnist")


# The search for them


def test_order_of_search(places, monkeypatch):
    own, debian, cache = places
    monkeypatch.setitem(datasets.SOURCES, "mnist", source(marker=3))
    for number, place in enumerate((own, debian, cache / "sa_jax"), 1):
        write(place / "mnist", make_files(number))
    assert marker(datasets.load_dataset("mnist")) == 1
    (own / "mnist").rename(own / "fashion-mnist")
    assert marker(datasets.load_dataset("mnist")) == 2
    monkeypatch.delenv("SA_JAX_DATA")
    assert marker(datasets.load_dataset("mnist")) == 2
    (debian / "mnist" / f"{NAMES[3]}.gz").unlink()
    assert marker(datasets.load_dataset("mnist")) == 3


class Mirrors(http.server.ThreadingHTTPServer):
    """What it holds and what it was asked for, by path; it promises more bytes than it sends under /short/."""

    daemon_threads = False  # so that closing waits for them

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.asked = {}, []

    def add(self, folder, files, level=9):
        for name, content in files.items():
            self.files[f"/{folder}/{name}.gz"] = zipped(content, level)
        return f"http://127.0.0.1:{self.server_port}/{folder}/"


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + self.path.startswith("/short/")))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *ignored):
        pass


@pytest.fixture
def mirrors(places, monkeypatch):
    monkeypatch.delenv("SA_JAX_DATA")
    with Mirrors() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def left_in(cache):
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


@pytest.mark.parametrize("level", [0, 9])
def test_what_is_checked_is_the_content_however_compressed(places, mirrors, monkeypatch, level):
    first = mirrors.add("first", make_files(7), level)
    monkeypatch.setitem(datasets.SOURCES, "mnist", source([first], 7))
    downloaded = datasets.load_dataset("mnist")
    assert marker(downloaded) == 7 and len(mirrors.asked) == 4
    assert left_in(places[2]) == sorted(f"{name}.gz" for name in NAMES)
    assert_equal(datasets.load_dataset("mnist"), downloaded)
    assert len(mirrors.asked) == 4  # not again


@pytest.mark.parametrize(
    "damage",
    [b"", b"not a gzip file", ZIPPED[:-9], zipped(LABELS)],
    ids=["empty", "not zipped", "truncated", "another"],
)
def test_a_damaged_file_in_the_cache_is_downloaded_again(places, mirrors, monkeypatch, damage):
    monkeypatch.setitem(datasets.SOURCES, "mnist", source([mirrors.add("first", make_files())]))
    whole = datasets.load_dataset("mnist")
    mirrors.asked.clear()
    (cached,) = places[2].rglob(f"{NAMES[0]}.gz")
    cached.write_bytes(damage)
    assert_equal(datasets.load_dataset("mnist"), whole)
    assert mirrors.asked == [f"/first/{NAMES[0]}.gz"]


def test_other_content_sends_on_to_the_next_mirror(places, mirrors, monkeypatch):
    first = mirrors.add("first", {**make_files(), NAMES[2]: make_files(1)[NAMES[2]]})
    second = mirrors.add("second", make_files())
    monkeypatch.setitem(datasets.SOURCES, "mnist", source([first, second]))
    assert marker(datasets.load_dataset("mnist")) == 0
    assert [path for path in mirrors.asked if "second" in path] == [f"/second/{NAMES[2]}.gz"]
    assert len(mirrors.asked) == 5


@pytest.mark.parametrize(
    ("folder", "content", "problem"),
    [
        ("first", zipped(make_files(1)[NAMES[2]]), "sent a file with a wrong checksum"),
        ("first", b"<html>Sign in to this network</html>", "sent a file with a wrong checksum"),
        ("first", zipped(make_files()[NAMES[2]])[:-9], "sent a file with a wrong checksum"),
        ("first", None, "failed (HTTPError)"),
        ("short", zipped(make_files()[NAMES[2]]), "failed ("),
    ],
    ids=["other images", "a page", "truncated", "not found", "broken off"],
)
def test_of_a_refused_download_nothing_stays(places, mirrors, monkeypatch, folder, content, problem):
    monkeypatch.setitem(datasets.SOURCES, "mnist", source([mirrors.add("first", make_files())]))
    datasets.load_dataset("mnist")
    (places[2] / "sa_jax" / "mnist" / f"{NAMES[2]}.gz").unlink()
    only = mirrors.add(folder, {})
    mirrors.files = {f"/{folder}/{NAMES[2]}.gz": content} if content else {}
    monkeypatch.setitem(datasets.SOURCES, "mnist", source([only]))
    with refusal(NAMES[2], f"{only} {problem}", "folder mnist/", "set SA_JAX_DATA"):
        datasets.load_dataset("mnist")
    assert left_in(places[2]) == sorted(f"{name}.gz" for name in NAMES if name != NAMES[2])


def test_without_a_network_the_message_says_what_to_do(places, monkeypatch):
    monkeypatch.delenv("SA_JAX_DATA")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setitem(datasets.SOURCES, "mnist", source([f"{address}/first/", f"{address}/second/"]))
    with refusal(f"{address}/first/ failed", f"{address}/second/ failed", "folder mnist/", "set SA_JAX_DATA"):
        datasets.load_dataset("mnist")
    assert not left_in(places[2])


# One's own .npz

X = np.arange(60, dtype=np.float32).reshape(20, 3)
Y = np.arange(20) % 3
WHOLE = {"x": X, "y": Y}
TWO = {"x_train": X[:12], "y_train": Y[:12], "x_test": X[12:], "y_test": Y[12:]}
THREE = {**TWO, "x_test": X[16:], "y_test": Y[16:], "x_validation": X[12:16], "y_validation": Y[12:16]}


def save(folder, arrays):
    path = folder / "own.npz"
    np.savez(path, **arrays)
    return str(path)


def changed(array, index, value):
    array = array.astype(np.result_type(array, type(value)))
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "sizes", "in_order"),
    [(WHOLE, [12, 4, 4], []), (TWO, [10, 2, 8], [2]), (THREE, [12, 4, 4], [1, 2])],
    ids=["whole", "two splits", "three splits"],
)
def test_own_arrays_in_each_layout(tmp_path, arrays, sizes, in_order):
    own = datasets.load_dataset(save(tmp_path, {**arrays, "comment": np.array("of no interest")}))
    assert own.name == "own" and own.num_classes == 3 and own.image_shape is None
    assert [len(split.labels) for split in own[1:4]] == sizes
    assert rows(*own[1:4]) == rows(datasets.Split(X, Y))
    for split in in_order:
        name = ("train", "validation", "test")[split]
        np.testing.assert_array_equal(own[1 + split].inputs, arrays[f"x_{name}"])
        np.testing.assert_array_equal(own[1 + split].labels, arrays[f"y_{name}"])


def test_a_class_too_rare_for_the_training_split_still_counts(tmp_path):
    for row in range(20):
        labels = np.where(np.arange(20) == row, 3, Y)
        assert datasets.load_dataset(save(tmp_path, {"x": X, "y": labels})).num_classes == 4


def test_own_layouts_keep_their_own_splits_apart(tmp_path):
    own = datasets.load_dataset(save(tmp_path, TWO))
    assert rows(own.train, own.validation) == rows(datasets.Split(X[:12], Y[:12]))


@pytest.mark.parametrize(
    ("dtype", "shape", "scale", "image_shape"),
    [
        (np.uint8, (20, 2, 3), 255, (2, 3)),
        (np.int32, (20, 2, 3), 1, (2, 3)),
        (np.float64, (20, 6), 1, None),
        (np.uint8, (20, 1, 2, 3), 255, None),
    ],
)
def test_own_inputs_are_flattened_and_bytes_scaled(tmp_path, dtype, shape, scale, image_shape):
    values = np.arange(120).reshape(shape)
    own = datasets.load_dataset(save(tmp_path, {"x": values.astype(dtype), "y": Y.astype(np.float64)}), 0.5, 2.0)
    expected = np.float32((values.reshape(20, 6) / scale - 0.5) / 2)
    inputs = np.concatenate([split.inputs for split in own[1:4]])
    np.testing.assert_allclose(inputs[inputs[:, 0].argsort()], expected, rtol=1e-6)
    assert own.image_shape == image_shape
    assert {array.dtype for split in own[1:4] for array in split} == {np.dtype("float32"), np.dtype("int32")}


@pytest.mark.parametrize("labels", ["<i8", ">i8", "<u8", ">u8", ">u2", "<i1", "<f2", ">f4"])
@pytest.mark.parametrize("inputs", ["<f4", ">f4", ">f8", ">f2", ">i4", ">u2"])
def test_any_byte_order_and_memory_layout_is_read(tmp_path, inputs, labels):
    numbers = np.arange(60.0).reshape(20, 3)  # which all of the types hold
    wanted = datasets.load_dataset(save(tmp_path, {"x": numbers, "y": Y}))
    own = datasets.load_dataset(
        save(tmp_path, {"x": np.asfortranarray(numbers.astype(inputs)), "y": Y.astype(labels)})
    )
    for found, expected in zip(own[1:4], wanted[1:4], strict=True):
        np.testing.assert_array_equal(found.inputs, expected.inputs, strict=True)
        np.testing.assert_array_equal(found.labels, expected.labels, strict=True)
        assert found.inputs.dtype == np.float32 and found.labels.dtype == np.int32
        assert found.inputs.flags.c_contiguous and found.inputs.flags.writeable


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({**WHOLE, "x": changed(X, (3, 1), np.nan)}, "x holds NaN or infinite values, first at x[3, 1]"),
        ({**WHOLE, "x": changed(X, (3, 1), np.inf)}, "x holds NaN or infinite values, first at x[3, 1]"),
        (
            {**WHOLE, "x": X.astype(np.float64) * 1e300},
            "x holds NaN or infinite values, first at x[0, ",
        ),  # in float32
        ({**TWO, "x_test": changed(X[12:], 0, -np.inf)}, "values, first at x_test[0, 0]"),
        ({**WHOLE, "x": changed(X, (3, 1), np.nan).reshape(20, 1, 3)}, "first at x[3, 0, 1]"),
        ({**WHOLE, "y": changed(Y, 3, np.nan)}, "y holds NaN or infinite values, first at y[3]"),
        ({**WHOLE, "y": Y.astype(np.uint64) + np.uint64(2**63)}, "labels y must be whole numbers from 0"),
        ({**WHOLE, "y": np.full(20, 2**64 - 1, ">u8")}, "labels y must be whole numbers from 0"),
        ({**WHOLE, "y": changed(Y, 3, -1)}, "labels y must be whole numbers from 0"),
        ({**WHOLE, "y": changed(Y, 3, 0.5)}, "labels y must be whole numbers from 0"),
        ({**WHOLE, "y": changed(Y, 3, 2**31)}, "labels y must be whole numbers from 0"),
        ({**THREE, "y_validation": -Y[12:16]}, "labels y_validation must be whole numbers from 0"),
        (
            {**TWO, "y_test": Y[12:] + 1},
            "test label 3 is out of range: the training labels run from 0 to 2",
        ),
        (
            {**THREE, "y_validation": Y[12:16] + 1},
            "validation label 3 is out of range: the training labels run from 0 to 2",
        ),
        ({"x": X[:4], "y": Y[:4]}, "4 samples are too few"),
        ({**TWO, "x_train": X[:5], "y_train": Y[:5]}, "5 samples are too few"),
        ({**TWO, "x_test": X[:0], "y_test": Y[:0]}, "x_test must be [samples, features], not [0, 3]"),
        ({**TWO, "x_test": X[12:, :2]}, "different numbers of features: [2, 3]"),
        ({**THREE, "x_validation": X[12:16, :2]}, "different numbers of features: [2, 3]"),
        ({**TWO, "x_validation": X[:4]}, "holds only one of x_validation, y_validation"),
        ({**TWO, "y_validation": Y[:4]}, "holds only one of x_validation, y_validation"),
        ({"x": X, "labels": Y}, "must hold x, y or x_train, y_train, x_test, y_test; it holds x, labels"),
        ({"x_train": X, "y_train": Y}, "must hold x, y or x_train, y_train, x_test, y_test; it holds x_train"),
        ({}, "must hold x, y or x_train, y_train, x_test, y_test"),
        ({"x": X, "y": 0 * Y}, "labels must run from 0 to the number of classes - 1, with two classes or more"),
        ({"x": X, "y": Y + 1}, "must occur; found 1, 2, 3; np.unique(y, return_inverse=True)[1] relabels"),
        ({"x": X, "y": Y + 2**30}, "labels must run from 0"),
        ({"x": X[:, :0], "y": Y}, "x must be [samples, features], not [20, 0]"),
        ({"x": X[:, 0], "y": Y}, "x must be [samples, features], not [20]"),
        ({"x": X, "y": Y[1:]}, "y [19] must hold one label for each of the 20 rows of x"),
        ({"x": X, "y": np.eye(20)}, "y [20, 20] must hold one label for each of the 20 rows of x"),
        ({"x": X, "y": np.array(["cat"] * 20)}, "found 0; np.unique"),
        ({"x": X, "y": Y + 1j}, "y must hold numbers, not complex128"),
        ({"x": X + 1j, "y": Y}, "x must hold numbers, not complex64"),
        ({"x": X}, "holds no labels"),
        ({"x": X, "y": Y, "classes": np.arange(3)}, "classes must be the names of all classes, text"),
        ({"x": X, "y": Y, "classes": np.array(["a", "b", "a"])}, "classes must be the names of all classes, text"),
        (
            {"x": X, "y": Y, "classes": np.array(["a", "b"])},
            "label 2 is out of range: the classes run from 0 to 1",
        ),
        (
            {"x": X, "y": np.array(["a", "c"] * 10), "classes": np.array(["a", "b"])},
            "y holds the label 'c', which is not one of classes",
        ),
    ],
)
def test_bad_arrays_are_named(tmp_path, arrays, problem):
    path = save(tmp_path, arrays)
    with refusal(path, problem):
        datasets.load_dataset(path)


def test_a_file_is_found_as_named_and_then_in_the_folder_of_data(places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(places[0], WHOLE)
    assert len(datasets.load_dataset("own.npz").train.labels) == 12
    save(tmp_path, TWO)
    assert len(datasets.load_dataset("own.npz").train.labels) == 10
    monkeypatch.setenv("HOME", str(places[0]))
    assert len(datasets.load_dataset("~/own.npz").train.labels) == 12


@pytest.mark.parametrize("name", ["absent.npz", "~no-such-user/absent.npz", "/nowhere/absent.npz"])
def test_a_missing_file_is_named_and_where_it_was_sought(places, monkeypatch, name):
    with refusal(f"file {name} is not there, nor in $SA_JAX_DATA ({places[0]})"):
        datasets.load_dataset(name)
    monkeypatch.delenv("SA_JAX_DATA")
    with refusal(f"file {name} is not there, and SA_JAX_DATA is not set"):
        datasets.load_dataset(name)


# Tables, and labels that are text


def write_table(folder):
    lines = [f"{label},{x},{y}" for label, (x, y, _) in zip("abc" * 7, np.r_[X, X[:1]], strict=True)]
    (folder / "own.csv").write_text("\n".join(["kind,x,y", *lines]))
    return f"{folder / 'own.csv'}"


def test_a_table_is_cut_like_other_files(tmp_path):
    own = datasets.load_dataset(f"{write_table(tmp_path)}#kind", 1.0, 2.0)
    assert own.name == "own" and own.num_classes == 3 and own.image_shape is None
    assert [split.inputs.shape for split in own[1:4]] == [(13, 2), (4, 2), (4, 2)]
    expected = datasets.Split((np.r_[X, X[:1]][:, :2] - 1) / 2, np.arange(21) % 3)
    assert rows(*own[1:4]) == rows(expected)


def test_names_of_classes_are_sorted_unless_the_file_orders_them(tmp_path):
    names = np.array(["b", "a", "c"])
    plain = datasets.read_samples(save(tmp_path, {"x": X, "y": names[Y]}))
    assert plain.classes == ("a", "b", "c") and plain.arrays["y"].tolist() == [(1, 0, 2)[y] for y in Y]
    ordered = datasets.read_samples(save(tmp_path, {"x": X, "y": names[Y], "classes": np.array([*names, "d"])}))
    assert ordered.classes == ("b", "a", "c", "d") and ordered.arrays["y"].tolist() == Y.tolist()
    assert datasets.split_samples("own", ordered).num_classes == 4  # one does not occur
    numbers = datasets.read_samples(save(tmp_path, {"x": X, "y": Y.astype(str)}))
    assert numbers.classes == () and numbers.arrays["y"].tolist() == Y.tolist()


def test_samples_without_labels_can_be_read_but_not_cut(tmp_path):
    path = save(tmp_path, {"x_train": X, "x_validation": X[:5], "x_test": X[:5]})
    samples = datasets.read_samples(path)
    assert not samples.labelled and list(samples.arrays) == ["x_train", "x_test", "x_validation"]
    table = f"{write_table(tmp_path)}#none"
    with refusal("column 1 (kind): 'a' is not a number"):
        datasets.read_samples(table)
    for name in (path, "rows.csv#none"):
        with refusal(f"{name} holds no labels; only sa-jax prune takes data without labels"):
            datasets.split_samples(name, samples)


def test_inputs_are_scaled_for_a_network():
    bytes_ = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    found = datasets.scaled_inputs("x", bytes_, 0.5, 2.0)
    np.testing.assert_allclose(found, (bytes_.reshape(2, 6) / 255 - 0.5) / 2, rtol=1e-6)
    with refusal("own x holds NaN or infinite values, first at x[0, 1]"):
        datasets.scaled_inputs("own x", np.array([[0.0, np.nan]]))
