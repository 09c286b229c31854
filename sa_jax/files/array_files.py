"""Reads and writes named arrays, whatever the format of the file."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from sa_jax.files import keras_files, torch_files, torch_pickles
from sa_jax.files.npz import npz_bytes, read_npz
from sa_jax.types import InputError

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
SUFFIXES = (".npz", ".safetensors", *TORCH_SUFFIXES, *keras_files.SUFFIXES)
WRITTEN = (".safetensors", ".npz", *TORCH_SUFFIXES)
# The types of .safetensors, but for those of less than a byte.
SAFETENSORS_TYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
    "BF16": np.dtype(jnp.bfloat16),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
    "F8_E8M0": np.dtype(jnp.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(jnp.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(jnp.float8_e5m2fnuz),
}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays, of any shape, of a file with one of `SUFFIXES`, by their names in the file.

    Types that NumPy lacks, such as bfloat16 and the kinds of float8, become those of `jax.numpy`.

    Raises:
      InputError: the file cannot be read, is damaged, has another format, or holds an array of a type that is not
        read.
    """
    refuse_gguf(path)
    if path.suffix == ".npz":
        return read_npz(path)
    if path.suffix in TORCH_SUFFIXES:
        return torch_files.read_tensors(path)
    if path.suffix in keras_files.SUFFIXES:
        return keras_files.read_arrays(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)[0]
    raise InputError(f"{path}: weights must be a file {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")


def refuse_gguf(path: Path) -> None:
    """Raises `InputError` if a file is in the format GGUF, whatever its suffix."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:  # which reading it reports
        return
    if start == b"GGUF":
        raise InputError(f"{path} is a GGUF file: convert it with sa_jax.files.gguf_models.write_hugging_face")


def read_metadata(path: Path) -> dict[str, str]:
    """Reads the text that a .safetensors file holds beside its arrays; empty for files of other formats.

    Raises:
      InputError: the file cannot be read, or is damaged.
    """
    return _read_safetensors(path, only_metadata=True)[1] if path.suffix == ".safetensors" else {}


def array_bytes(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """Returns the content of a file of arrays, in the format that its suffix tells.

    Types stay as they are, except that .npz gets float32 in place of types that NumPy lacks, all of whose values
    float32 holds.

    Args:
      path: where the file will be, with one of `WRITTEN`.
      arrays: the arrays by name, of any shape, byte order and memory layout.
      metadata: text that a .safetensors file holds beside its arrays. Other formats do not hold it.

    Raises:
      InputError: the format does not have the type of an array.
    """
    if path.suffix == ".npz":
        plain = {name: a if _is_of_numpy(a) else a.astype(np.float32) for name, a in arrays.items()}
        _refuse(plain, lambda dtype: dtype.hasobject, ".npz")
        return npz_bytes(plain)
    little = {name: np.asarray(a, a.dtype.newbyteorder("<"), order="C") for name, a in arrays.items()}
    if path.suffix in TORCH_SUFFIXES:
        _refuse(little, lambda dtype: not torch_pickles.has_type(dtype), "PyTorch")
        return torch_files.torch_bytes(little)
    _refuse(little, lambda dtype: dtype not in SAFETENSORS_TYPES.values(), ".safetensors")
    return safetensors.numpy.save(little, dict(metadata) if metadata else None)


def _refuse(arrays: Mapping[str, np.ndarray], is_wrong: Callable[[np.dtype], bool], kind: str) -> None:
    for name, array in arrays.items():
        if is_wrong(array.dtype):
            raise InputError(f"array {name!r} is of type {array.dtype.name}, which a {kind} file cannot hold")


def check_numbers(name: str, array: np.ndarray, place: str = "") -> None:
    """Raises `InputError` if an array of floats holds NaN or infinite values.

    Args:
      name: name of the array.
      array: an array of any shape and type.
      place: text that the message begins with, such as the name of the file.
    """
    if jnp.issubdtype(array.dtype, jnp.inexact) and (wrong := np.count_nonzero(~np.isfinite(array))):
        raise InputError(f"{place}array {name!r} holds NaN or infinite values, {wrong:,} of {array.size:,}")


def _read_safetensors(path: Path, only_metadata: bool = False) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safetensors.safe_open(path, "numpy") as checked:  # offsets and shapes fit the file
            metadata = checked.metadata() or {}
        if only_metadata:
            return {}, metadata
        arrays = {}
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                if entry["dtype"] not in SAFETENSORS_TYPES:
                    raise InputError(f"{path}: array {name!r} is of type {entry['dtype']}, which is not read")
                file.seek(8 + length + entry["data_offsets"][0])
                flat = np.fromfile(file, SAFETENSORS_TYPES[entry["dtype"]], math.prod(entry["shape"]))
                arrays[name] = flat.reshape(entry["shape"])
        return arrays, metadata
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # safetensors does not document its errors
        if unknown := re.search(r"unknown variant `(\w{1,80})`", str(error)):
            raise InputError(f"{path}: an array is of type {unknown[1]}, which is not read") from None
        reason = torch_files.one_line(error, 200)
        raise InputError(f"{path} is damaged or not a .safetensors file: {reason}") from None


def _is_of_numpy(array: np.ndarray) -> bool:
    return array.dtype.type.__module__ == "numpy"
