"""Loads data sets in three splits: digits (packaged), MNIST, Fashion-MNIST, or any .npz or .csv file.

Annealing uses the training split. Settings are chosen on the validation split. The test split gives the final
figures only.
"""

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sa_jax import checks
from sa_jax.files import tables
from sa_jax.files.npz import read_npz
from sa_jax.types import InputError

# The seed that decides which samples are in which split.
SPLIT_SEED = 20_220_228
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# What the names of the arrays of each split end in; those of samples that are yet to be cut have no ending.
PARTS = ("", "_train", "_validation", "_test")
IDX_HEADERS = {0x801: 1, 0x803: 3}
DEBIAN_DATA = Path("/usr/share/datasets")


class Source(NamedTuple):
    """Where an IDX data set comes from: its folder, its mirrors, and the SHA-256 of each decompressed file."""

    folder: str
    mirrors: tuple[str, ...]
    hashes: tuple[str, ...]


SOURCES = {
    "mnist": Source(
        "mnist",
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion_mnist": Source(
        "fashion-mnist",
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
}


class Split(NamedTuple):
    """The samples of a split: inputs float32 `[samples, features]`, labels int32 `[samples]`."""

    inputs: np.ndarray  # float32 [samples, features]
    labels: np.ndarray  # int32 [samples]


class Dataset(NamedTuple):
    """Three disjoint splits; `image_shape` is `(rows, columns)` if the features are pixels, else None."""

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    image_shape: tuple[int, int] | None


class Samples(NamedTuple):
    """What a data set holds before it is cut into splits.

    Attributes:
      arrays: by name, `x, y` or `x_train, y_train, x_test, y_test` and perhaps `x_validation, y_validation`:
        inputs `[samples, ...]` and labels `[samples]`. Without the labels where there are none.
      classes: names of the classes, where the data set has them: label `i` stands for `classes[i]`. Else empty.
    """

    arrays: dict[str, np.ndarray]
    classes: tuple[str, ...] = ()

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return any(name[0] == "y" for name in self.arrays)


def load_dataset(name: str, input_mean: float = 0.0, input_std: float = 1.0) -> Dataset:
    """Loads a data set in three splits, which are the same every time.

    Args:
      name: 'digits' from scikit-learn, 'mnist' or 'fashion_mnist' from IDX files, or the path of an .npz or .csv.
        IDX files are searched in `$SA_JAX_DATA`, in /usr/share/datasets and in the user's cache; if they are in
        none of these, they are downloaded to the cache and their checksums compared. An .npz holds either `x, y`,
        or `x_train, y_train, x_test, y_test` and optionally `x_validation, y_validation`. Inputs are
        `[samples, ...]`. Labels are whole numbers from 0, or text, which is sorted and numbered; `classes`, the
        names of all classes, may give another order, and classes that do not occur. A .csv holds a sample in each
        line, and the label in its last column; 'data.csv#NAME' names another column.
      input_mean: subtracted from the inputs. Before that, inputs of dtype uint8 are divided by 255, and those of
        digits by 16.
      input_std: divides the inputs after the subtraction; above 0.

    Returns:
      A `Dataset`. For MNIST, the last 10,000 of a fixed permutation of the 60,000 training images are the
      validation split. A data set without splits is cut 60 : 20 : 20.

    Raises:
      InputError: an unknown name, missing or damaged files, no labels, values that are not finite, or labels out
        of range.

    >>> digits = load_dataset("digits")
    >>> digits.train.inputs.shape, digits.validation.inputs.shape, digits.test.inputs.shape
    ((1079, 64), (359, 64), (359, 64))
    """
    checks.number("input_mean", input_mean)
    checks.number("input_std", input_std, above=0)
    return split_samples(name, read_samples(name), input_mean, input_std)


def read_samples(name: str) -> Samples:
    """Reads a data set as `load_dataset` does, with or without labels, and does not cut it into splits.

    Args:
      name: as for `load_dataset`. 'data.csv#none' names no column of labels.

    Raises:
      InputError: an unknown name, missing or damaged files, or labels that are neither numbers nor text.
    """
    if name == "digits":
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        inputs = (np.asarray(pixels) / 16).astype(np.float32).reshape(-1, 8, 8)
        return Samples({"x": inputs, "y": np.asarray(labels)})
    if name in SOURCES:
        return Samples(_idx_arrays(SOURCES[name]))
    if name.endswith(".npz"):
        return _npz_samples(data_file(name))
    path, label = table_of(name)
    if path is not None:
        table = tables.read_table(data_file(path), label)
        labels = {} if table.labels is None else {"y": table.labels}
        return Samples({"x": table.inputs} | labels, table.classes)
    known = ", ".join(("digits", *SOURCES))
    raise InputError(f"unknown dataset {name!r}; known: {known}, or the path of an .npz or .csv")


def table_of(name: str) -> tuple[str | None, str | None]:
    """Returns the path of the .csv file that a name means, or None, and the column that it names, or None.

    >>> table_of("irises.csv"), table_of("irises.csv#species"), table_of("digits")
    (('irises.csv', None), ('irises.csv', 'species'), (None, None))
    """
    path, _, label = name.rpartition("#")
    if path.lower().endswith(".csv"):
        return path, label
    return (name if name.lower().endswith(".csv") else None), None


def split_samples(name: str, samples: Samples, input_mean: float = 0.0, input_std: float = 1.0) -> Dataset:
    """Checks samples and returns them in three splits, as `load_dataset` does.

    Args:
      name: name of the data set, as for `load_dataset`.
      samples: its samples.
      input_mean: as for `load_dataset`.
      input_std: as for `load_dataset`.

    Raises:
      InputError: there are no labels, values are not finite, or labels are out of range.
    """
    arrays = samples.arrays
    if not samples.labelled:
        raise InputError(f"{name} holds no labels; only sa-jax prune takes data without labels")
    image_shape = arrays["x" if "x" in arrays else "x_train"].shape[1:]
    splits = _three_splits(name, arrays)
    # Counted before the split, so that a class too rare for the training split is known.
    occurring = np.unique(arrays["y" if "y" in arrays else "y_train"])
    num_classes = len(samples.classes or occurring)
    if num_classes < 2 or not (samples.classes or np.array_equal(occurring, np.arange(num_classes))):
        found = ", ".join(f"{label:g}" for label in occurring[:5]) + (", ..." if len(occurring) > 5 else "")
        raise InputError(
            f"{name}: labels must run from 0 to the number of classes - 1, with two classes or more, and each "
            f"class must occur; found {found}; np.unique(y, return_inverse=True)[1] relabels them"
        )
    for kind, split in zip(("training", "validation", "test"), splits, strict=True):
        if split.labels.max() >= num_classes:
            whose = "the classes" if samples.classes else "the training labels"
            raise InputError(
                f"{name}: {kind} label {split.labels.max()} is out of range: {whose} run from 0 to "
                f"{num_classes - 1}"
            )
    train, validation, test = (
        split._replace(inputs=_normalized(split.inputs, input_mean, input_std)) for split in splits
    )
    shape = image_shape if len(image_shape) == 2 else None
    return Dataset(_short(name), train, validation, test, num_classes, shape)


def scaled_inputs(name: str, inputs: np.ndarray, input_mean: float = 0.0, input_std: float = 1.0) -> np.ndarray:
    """Returns the inputs of a data set as a network gets them, float32 `[samples, features]`.

    Args:
      name: what the inputs are, for messages.
      inputs: of `read_samples`, `[samples, ...]`.
      input_mean: as for `load_dataset`.
      input_std: as for `load_dataset`.

    Raises:
      InputError: not an array of finite numbers, one row for each sample.
    """
    return _normalized(_flat(name, inputs), input_mean, input_std)


def _normalized(inputs: np.ndarray, mean: float, std: float) -> np.ndarray:
    return (inputs - np.float32(mean)) / np.float32(std)


def _short(name: str) -> str:
    return Path(table_of(name)[0] or name).stem


def data_file(name: str) -> Path:
    """Finds a file at the path given, or else in the folder `$SA_JAX_DATA`.

    Raises:
      InputError: the file is in neither place.
    """
    try:
        given = Path(name).expanduser()
    except RuntimeError:  # ~user of an unknown user
        given = Path(name)
    if given.is_file():
        return given
    folder = os.environ.get("SA_JAX_DATA")
    if folder and (Path(folder) / name).is_file():
        return Path(folder) / name
    where = f"nor in $SA_JAX_DATA ({folder})" if folder else "and SA_JAX_DATA is not set"
    raise InputError(f"file {name} is not there, {where}")


def read_idx(path: Path) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, plain or gzipped: labels `[samples]` or images `[samples, h, w]`.

    Raises:
      InputError: the file is missing, damaged, truncated, or longer than its header says.
    """
    content = _decompressed(path)
    magic = int.from_bytes(content[:4], "big")
    if len(content) < 4 or magic not in IDX_HEADERS:
        raise InputError(
            f"{path} is not an IDX file of images or labels: it starts with {content[:4].hex() or 'nothing'}"
        )
    rank = IDX_HEADERS[magic]
    header = 4 + 4 * rank
    if len(content) < header:
        raise InputError(f"{path} is truncated within its header")
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
    declared, present = math.prod(shape), len(content) - header
    if declared != present:
        problem = "truncated" if present < declared else "longer than its header says"
        raise InputError(
            f"{path} is {problem}: shape {list(shape)} needs {declared} bytes, the file has {present}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _decompressed(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is a damaged or truncated .gz file: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def _idx_arrays(source: Source) -> dict[str, np.ndarray]:
    names = ("x_train", "y_train", "x_test", "y_test")
    paths = _idx_paths(source)
    arrays = {name: read_idx(path) for name, path in zip(names, paths, strict=True)}
    for name, path in zip(names, paths, strict=True):
        if arrays[name].ndim != (3 if name[0] == "x" else 1):
            found, expected = ("labels", "images") if name[0] == "x" else ("images", "labels")
            raise InputError(f"{path} contains {found} where {expected} were expected; are the two files swapped?")
        if name[0] == "y" and arrays[name].size and arrays[name].max() > 9:
            raise InputError(f"{path}: label {arrays[name].max()} is out of range 0..9")
    return arrays


def _idx_paths(source: Source) -> list[Path]:
    own = os.environ.get("SA_JAX_DATA")
    if own and not Path(own).is_dir():
        raise InputError(f"SA_JAX_DATA={own} is not a folder")
    for place in ([Path(own)] if own else []) + [DEBIAN_DATA]:
        folder = place / source.folder
        if not folder.is_dir():
            continue
        found = {name: _plain_or_gz(folder, name) for name in IDX_FILES}
        missing = [name for name, path in found.items() if path is None]
        if not missing:
            return [path for path in found.values() if path]
        if own and place == Path(own):
            raise InputError(f"{folder} lacks {missing[0]} (plain or .gz)")
    return [_cached(source, name, digest) for name, digest in zip(IDX_FILES, source.hashes, strict=True)]


def _plain_or_gz(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _cached(source: Source, name: str, digest: str) -> Path:
    import pooch

    folder = Path(pooch.os_cache("sa_jax")) / source.folder
    path = folder / f"{name}.gz"
    if path.is_file() and _has_digest(path, digest):
        return path
    aside = folder / f".{name}.{os.getpid()}.gz"
    problems = []
    for mirror in source.mirrors:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            fetch(f"{mirror}{name}.gz", aside)
            if _has_digest(aside, digest):
                os.replace(aside, path)
                return path
            problems.append(f"{mirror} sent a file with a wrong checksum")
        except Exception as error:  # requests, urllib3 and pooch each raise their own errors
            problems.append(f"{mirror} failed ({type(error).__name__})")
        finally:
            aside.unlink(missing_ok=True)
    raise InputError(
        f"{name} could not be downloaded: {', '.join(problems)}; "
        f"put the four files in a folder {source.folder}/ and set SA_JAX_DATA to the folder above it"
    )


def fetch(url: str, path: Path) -> None:
    """Downloads a URL to a path; the caller compares the checksum."""
    import pooch

    pooch.get_logger().setLevel("ERROR")
    pooch.retrieve(url, known_hash=None, fname=path.name, path=path.parent)


def _has_digest(path: Path, digest: str) -> bool:
    # Mirrors compress in different ways, so the decompressed content is hashed.
    try:
        return hashlib.sha256(_decompressed(path)).hexdigest() == digest
    except InputError:
        return False


def _npz_samples(path: Path) -> Samples:
    arrays = read_npz(path)
    # Other arrays may be labels under a name that is not known.
    labelled = bool(set(arrays) - {f"x{part}" for part in PARTS})
    layouts = (("x", "y"), ("x_train", "y_train", "x_test", "y_test"))
    wanted = ([name for name in layout if labelled or name[0] == "x"] for layout in layouts)
    layout = next((names for names in wanted if set(names) <= set(arrays)), None)
    if layout is None:
        raise InputError(
            f"{path} must hold x, y or x_train, y_train, x_test, y_test; it holds {', '.join(arrays)}"
        )
    optional = ("x_validation", "y_validation") if layout[0] == "x_train" else ()
    if labelled and optional and len(set(optional) & set(arrays)) == 1:
        raise InputError(f"{path} holds only one of x_validation, y_validation")
    chosen = {name: arrays[name] for name in (*layout, *optional) if name in arrays}
    return _with_numbers(path, chosen, arrays.get("classes"))


def _with_numbers(path: Path, arrays: dict[str, np.ndarray], classes: np.ndarray | None) -> Samples:
    """The arrays of a file, with labels in text replaced by the numbers of their classes."""
    texts = {name: array for name, array in arrays.items() if name[0] == "y" and array.dtype.kind == "U"}
    if classes is None:
        found = tables.numbered([word for array in texts.values() for word in array.ravel().tolist()])[1]
        if not found:
            return Samples(arrays | {name: array.astype(np.float64) for name, array in texts.items()})
        classes = np.array(found)
    elif classes.ndim != 1 or classes.dtype.kind != "U" or len(set(classes.tolist())) < len(classes):
        raise InputError(f"{path}: classes must be the names of all classes, text, each of them once")
    numbers = {name: number for number, name in enumerate(classes.tolist())}
    for name, array in texts.items():
        if strange := set(array.ravel().tolist()) - set(numbers):
            raise InputError(f"{path}: {name} holds the label {min(strange)!r}, which is not one of classes")
        known = [numbers[word] for word in array.ravel().tolist()]
        arrays = arrays | {name: np.array(known, np.int64).reshape(array.shape)}
    return Samples(arrays, tuple(numbers))


def _three_splits(name: str, arrays: Mapping[str, np.ndarray]) -> list[Split]:
    parts = {
        suffix: _checked(name, suffix, arrays[f"x{suffix}"], arrays[f"y{suffix}"])
        for suffix in PARTS
        if f"x{suffix}" in arrays
    }
    widths = {part.inputs.shape[1] for part in parts.values()}
    if len(widths) > 1:
        raise InputError(f"{name}: the splits have different numbers of features: {sorted(widths)}")
    if "" in parts:
        samples = len(parts[""].labels)
        return _cut(name, parts[""], [samples - 2 * (samples // 5), samples // 5, samples // 5])
    if "_validation" in parts:
        (train,) = _cut(name, parts["_train"], [len(parts["_train"].labels)])
        return [train, parts["_validation"], parts["_test"]]
    samples = len(parts["_train"].labels)
    return [*_cut(name, parts["_train"], [samples - samples // 6, samples // 6]), parts["_test"]]


def _cut(name: str, split: Split, sizes: list[int]) -> list[Split]:
    if min(sizes) == 0:
        raise InputError(f"{name}: {len(split.labels)} samples are too few to cut into splits of {sizes}")
    order = np.random.Generator(np.random.PCG64(SPLIT_SEED)).permutation(len(split.labels))
    chosen = np.split(order, np.cumsum(sizes)[:-1])
    return [Split(split.inputs[rows], split.labels[rows]) for rows in chosen]


def _checked(name: str, suffix: str, inputs: np.ndarray, labels: np.ndarray) -> Split:
    flat = _flat(f"{name}: x{suffix}", inputs)
    if labels.shape != inputs.shape[:1]:
        raise InputError(
            f"{name}: y{suffix} {list(labels.shape)} must hold one label for each of the {len(inputs)} rows "
            f"of x{suffix}"
        )
    if labels.dtype.kind not in "fiu":
        raise InputError(f"{name}: y{suffix} must hold numbers, not {labels.dtype}")
    _check_finite(f"{name}: y{suffix}", labels)
    if (labels != np.floor(labels)).any() or labels.min() < 0 or int(labels.max()) >= 2**31:
        raise InputError(f"{name}: labels y{suffix} must be whole numbers from 0")
    return Split(flat, labels.astype(np.int32))


def _flat(what: str, inputs: np.ndarray) -> np.ndarray:
    """Inputs as float32 `[samples, features]`; those of dtype uint8 are divided by 255."""
    if inputs.ndim < 2 or inputs.size == 0:
        raise InputError(f"{what} must be [samples, features], not {list(inputs.shape)}")
    if inputs.dtype.kind not in "fiub":
        raise InputError(f"{what} must hold numbers, not {inputs.dtype}")
    with np.errstate(over="ignore"):  # values beyond float32 become infinite
        flat = inputs.reshape(len(inputs), -1).astype(np.float32)
    _check_finite(what, flat.reshape(inputs.shape))
    return flat / np.float32(255 if inputs.dtype == np.uint8 else 1)


def _check_finite(what: str, array: np.ndarray) -> None:
    if not (finite := np.isfinite(array)).all():
        place = np.argwhere(~finite)[0].tolist()
        raise InputError(f"{what} holds NaN or infinite values, first at {what.rpartition(' ')[2]}{place}")
