"""Reads files in the format GGUF, those of llama.cpp: metadata and tensors, each on access. Needs gguf.

What the header says is checked against the size of the file before memory is taken for it. The names and layouts
of a model's tensors are told by `gguf_models`.
"""

import contextlib
import math
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from sa_jax.files.paths import expanded
from sa_jax.files.torch_files import one_line
from sa_jax.types import InputError

FLOATS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(jnp.bfloat16)}
# Weights of a block share a scale.
BLOCKS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
VERSIONS = (2, 3)
MOST_AXES = 4
# Bytes of a key or of a tensor's name; llama.cpp allows 64 of a tensor's.
LONGEST_NAME = 1_000
TEXT, LIST = 8, 9
# The other types of metadata, by their numbers in the format.
NUMBERS = dict(enumerate(map(np.dtype, ("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"))))
NUMBERS |= dict(enumerate(map(np.dtype, ("<u8", "<i8", "<f8")), 10))


class Tensor(NamedTuple):
    """A tensor in a file, which `read` reads.

    Attributes:
      path: the file.
      kind: the type of its weights there, such as 'Q4_K'.
      shape: its shape as an array of NumPy, row-major. The file lists the fastest dimension first; this is the
        reverse. A linear layer is `[outputs, inputs]`.
      place: where its first byte is in the file.
      length: the number of its bytes.
    """

    path: Path
    kind: str
    shape: tuple[int, ...]
    place: int
    length: int

    def read(self) -> np.ndarray:
        """Returns the weights, float32, of the shape `shape`.

        Raises:
          InputError: the file has been changed since its header was read, or gguf is missing.
        """
        gguf = _gguf()
        with _reading(self.path) as file:
            file.seek(self.place)
            content = np.fromfile(file, np.uint8, self.length)
            if content.size < self.length:
                raise ValueError("it ends too early")
        with np.errstate(over="ignore", invalid="ignore"):  # the scales of a damaged file may be NaN
            if self.kind in FLOATS:
                return content.view(FLOATS[self.kind]).astype(np.float32, copy=False).reshape(self.shape)
            rows = content.reshape(math.prod(self.shape[:-1]), -1)
            return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[self.kind]).reshape(self.shape)


class Metadata(Mapping[str, Any]):
    """The values beside the tensors, by key: numbers, bools, text, and lists of them.

    A value is read and decoded each time that it is asked for.
    """

    def __init__(self, path: Path, places: Mapping[str, tuple[int, int]]) -> None:
        """The type of each value and where it is in the file."""
        self._path, self._places = path, places

    def __getitem__(self, key: str) -> Any:
        kind, place = self._places[key]
        with _reading(self._path) as file:
            return _value(_Cursor(file, place), kind)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Content(NamedTuple):
    """What a GGUF file holds.

    Attributes:
      path: the file.
      metadata: what is known of the model, such as `general.architecture`, `llama.rope.freq_base`,
        `llama.attention.head_count` and the vocabulary, `tokenizer.ggml.tokens`.
      tensors: the tensors by name, in the order of the file.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def read(source: str | os.PathLike[str]) -> Content:
    """Reads the header of a GGUF file; metadata and tensors are read from the file when they are asked for.

    So a model that is larger than the memory can be read tensor by tensor:

        for name, tensor in gguf_files.read("model.gguf").tensors.items():
            array = tensor.read()

    Args:
      source: the path of a file of version 2 or 3, little-endian, with tensors of the types `FLOATS` and `BLOCKS`.

    Raises:
      InputError: gguf is missing; the file cannot be read or is damaged; or a tensor is of another type.
    """
    path, gguf = expanded(source), _gguf()
    with _reading(path) as file:
        cursor = _Cursor(file)
        if cursor.take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        if (version := cursor.number("<I")) not in VERSIONS:
            if version % (1 << 16) == 0:
                raise ValueError("it is big-endian, and only little-endian files are read")
            raise ValueError(f"it is of version {version}, and only {' and '.join(map(str, VERSIONS))} are read")
        num_tensors, num_values = cursor.number("<Q"), cursor.number("<Q")
        places: dict[str, tuple[int, int]] = {}
        for _ in range(num_values):
            if (key := cursor.name()) in places:
                raise ValueError(f"two values are called {key!r}")
            places[key] = cursor.number("<I"), cursor.place
            _pass_over(cursor, places[key][0])
        declared: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(num_tensors):
            if (name := cursor.name()) in declared:
                raise ValueError(f"two tensors are called {name!r}")
            if (axes := cursor.number("<I")) > MOST_AXES:
                raise ValueError(f"{name!r} has {axes} axes, and at most {MOST_AXES} are possible")
            shape = tuple(cursor.number("<Q") for _ in range(axes))[::-1]
            declared[name] = shape, cursor.number("<I"), cursor.number("<Q")
        metadata = Metadata(path, places)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment is {alignment!r}, not a power of two")
        start = -(-cursor.place // alignment) * alignment
        tensors = {
            name: _tensor(gguf, path, name, shape, kind, start + offset)
            for name, (shape, kind, offset) in declared.items()
        }
        _check_places(tensors, alignment, start, cursor.size)
    return Content(path, metadata, tensors)


def _tensor(gguf: Any, path: Path, name: str, shape: tuple[int, ...], number: int, place: int) -> Tensor:
    kinds = gguf.GGMLQuantizationType
    kind = next((one.name for one in kinds if one.value == number), str(number))
    if kind not in (*FLOATS, *BLOCKS):
        raise InputError(
            f"{path}: tensor {name!r} is of type {kind}, which is not read: "
            f"quantize the model as {', '.join(FLOATS)}, {', '.join(BLOCKS[:-1])} or {BLOCKS[-1]}"
        )
    block, length = gguf.GGML_QUANT_SIZES[kinds[kind]]
    if 0 in shape or (shape[-1] if shape else 1) % block:
        raise ValueError(f"{name!r} is of the shape {list(shape)}, whose rows are no blocks of {kind}")
    return Tensor(path, kind, shape, place, math.prod(shape) // block * length)


def _check_places(tensors: Mapping[str, Tensor], alignment: int, start: int, size: int) -> None:
    """Raises `ValueError` if tensors lie outside of their part of a file, or over each other."""
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].place):
        if tensor.place % alignment or tensor.place < end:
            raise ValueError(f"{name!r} does not lie where a tensor may begin")
        end = tensor.place + tensor.length
        if end > size:
            raise ValueError(f"{name!r} needs {tensor.length:,} bytes, and the file ends before")


class _Cursor:
    """Reads a file from a place on; what is longer than the rest of the file takes no memory."""

    def __init__(self, file: BinaryIO, place: int = 0) -> None:
        self._file, self.place, self.size = file, place, os.fstat(file.fileno()).st_size
        file.seek(place)

    def require(self, length: int) -> None:
        if length > self.size - self.place:
            raise ValueError("it ends too early")

    def take(self, length: int) -> bytes:
        self.require(length)
        self.place += length
        return self._file.read(length)

    def skip(self, length: int) -> None:
        self.require(length)
        self.place += length
        self._file.seek(self.place)

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def name(self) -> str:
        if (length := self.number("<Q")) > LONGEST_NAME:
            raise ValueError(f"a name in it has {length:,} bytes")
        return self.take(length).decode()


def _pass_over(cursor: _Cursor, kind: int) -> None:
    """Moves a cursor behind a value, and checks that it can be read."""
    number, count = (cursor.number("<I"), cursor.number("<Q")) if kind == LIST else (kind, 1)
    if number == TEXT:
        cursor.require(8 * count)
        for _ in range(count):
            cursor.skip(cursor.number("<Q"))
    elif number in NUMBERS:
        cursor.skip(count * NUMBERS[number].itemsize)
    else:
        raise ValueError(f"it holds a value of the unknown type {number}")


def _value(cursor: _Cursor, kind: int) -> Any:
    number, count = (cursor.number("<I"), cursor.number("<Q")) if kind == LIST else (kind, 1)
    if number == TEXT:
        values = [cursor.take(cursor.number("<Q")).decode() for _ in range(count)]
    else:
        values = np.frombuffer(cursor.take(count * NUMBERS[number].itemsize), NUMBERS[number]).tolist()
    return values if kind == LIST else values[0]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, struct.error) as error:
        raise InputError(f"{path} is damaged or not a GGUF file: {one_line(error, 200)}") from None


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise InputError(".gguf files need gguf: pip install 'sa_jax[gguf]'") from None
    return gguf
