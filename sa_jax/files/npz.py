"""Reads and writes .npz files of plain arrays, without pickle."""

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from sa_jax.files.bounded import Bounded
from sa_jax.types import InputError

# The most that DEFLATE compresses.
MAX_RATIO = 1_032
READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of an .npz file, of any shape and dtype, by their names.

    Raises:
      InputError: the file cannot be read, is damaged, or holds something other than plain arrays.
    """
    try:
        with Bounded(path) as opened:
            if opened.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
                raise ValueError("it is a single array")
            with zipfile.ZipFile(opened) as archive:
                return {info.filename.removesuffix(".npy"): _array(archive, info) for info in archive.infolist()}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # zipfile, zlib and numpy each raise their own errors
        problem = str(error).partition("\n")[0]
        raise InputError(f"{path} is damaged or not an .npz of plain arrays: {problem}") from None


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns the content of a compressed .npz file of named arrays, of any shape and dtype."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict[str, Any](arrays))
    return buffer.getvalue()


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """An array of an archive; no memory is taken for more bytes than there can be."""
    with archive.open(info) as member:
        if member.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
            raise ValueError(f"{info.filename!r} in it is not an array")
    if info.file_size > MAX_RATIO * (info.compress_size + 1):
        raise ValueError(f"{info.filename!r} in it is not as long as it declares")
    with archive.open(info) as member:
        if (version := npy.read_magic(member)) not in READ_HEADER:  # 3.0 is of named fields alone
            raise ValueError(f"{info.filename!r} in it is not a plain array, but of the format {version}")
        shape, _, dtype = READ_HEADER[version](member)
        declared = member.tell() + math.prod(shape) * dtype.itemsize
    if declared != info.file_size and not dtype.hasobject:
        raise ValueError(f"{info.filename!r} in it has {info.file_size:,} bytes, but needs {declared:,}")
    with archive.open(info) as member:
        return npy.read_array(member, allow_pickle=False)
