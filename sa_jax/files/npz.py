"""Reads and writes .npz files of plain arrays, without pickle."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sa_jax.types import InputError


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of an .npz file, of any shape and dtype, by their names.

    Raises:
      InputError: the file cannot be read, is damaged, or holds something other than plain arrays.
    """
    try:
        # If the archive is damaged, numpy does not close a file that it opened itself.
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise InputError("it is a single array")
            return {name: file[name] for name in file.files}
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
