"""Reads and writes the arrays of Keras files, `.weights.h5`, `.h5` and `.keras`, without Keras. Needs h5py."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sa_jax.files import workdirs
from sa_jax.types import InputError

SUFFIXES = (".h5", ".keras")
# The weights within a .keras archive.
MEMBER = "model.weights.h5"
# Arrays that no layer computes with.
LEFT_OUT = ("optimizer/", "optimizer_weights/", "seed_generator/")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the layers' arrays, of any shape, by their paths in the HDF5 file.

    Links to other files are not followed.

    Raises:
      InputError: h5py is missing, or the file cannot be read, is damaged, keeps arrays in other files, or declares
        larger arrays than it holds.
    """
    h5py = _h5py(path)
    try:
        content = _weights(path.read_bytes(), path.suffix)
        left, arrays = len(content), {}

        def take(place: str, found: Any) -> None:
            nonlocal left
            named = place + "/"
            if not isinstance(found, h5py.Dataset) or any(part in named for part in LEFT_OUT):
                return
            if found.is_virtual or found.external is not None:
                raise ValueError(f"{place} is stored in another file")
            left -= found.nbytes
            if left < 0:
                raise ValueError(f"{place} is compressed or larger than the file")
            arrays[place] = np.asarray(found[()])

        with h5py.File(io.BytesIO(content), "r") as file:
            file.visititems(take)
        return arrays
    except Exception as error:
        raise _not_a_keras_file(path, error) from None


def write_arrays(source: Path, out: Path, changes: Mapping[str, np.ndarray]) -> None:
    """Writes a copy of a Keras file, in the same format, with some arrays changed.

    Args:
      source: the file, as for `read_arrays`.
      out: the copy; replaced if it exists.
      changes: new arrays by their paths in the file, of the same shapes.

    Raises:
      InputError: as for `read_arrays`; or `out` cannot be written.
    """
    h5py = _h5py(source)
    try:
        whole = source.read_bytes()
        changed = io.BytesIO(_weights(whole, source.suffix))
        with h5py.File(changed, "r+") as file:
            for place, array in changes.items():
                file[place][...] = array
        content = changed.getvalue()
        if source.suffix == ".keras":
            archive = io.BytesIO()
            with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(archive, "w") as new:
                for member in old.infolist():
                    new.writestr(member, content if member.filename == MEMBER else old.read(member))
            content = archive.getvalue()
    except Exception as error:
        raise _not_a_keras_file(source, error) from None
    workdirs.write_file(out, content)


def sequential_bytes(kernels: Sequence[np.ndarray], biases: Sequence[np.ndarray | None]) -> bytes:
    """Returns the content of a `.weights.h5` file for a `keras.Sequential` of `Dense` layers.

    Args:
      kernels: one `[inputs, outputs]` per layer, in network order.
      biases: one `[outputs]` per layer, None for `use_bias=False`.
    """
    buffer = io.BytesIO()
    with _h5py(Path(".weights.h5")).File(buffer, "w") as file:
        file.create_group("vars")
        for layer, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
            group = file.create_group(f"layers/dense{f'_{layer}' if layer else ''}/vars")
            for place, array in enumerate([kernel] if bias is None else [kernel, bias]):
                group[str(place)] = array
    return buffer.getvalue()


def _weights(content: bytes, suffix: str) -> bytes:
    if suffix != ".keras":
        return content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if archive.getinfo(MEMBER).file_size > len(content):
            raise ValueError(f"{MEMBER} in it is longer than the file")
        return archive.read(MEMBER)


def _h5py(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path.suffix} files need h5py: pip install 'sa_jax[keras]'") from None
    return h5py


def _not_a_keras_file(path: Path, error: Exception) -> InputError:
    if isinstance(error, OSError) and error.errno is not None:
        return InputError(f"{path} cannot be read: {error.strerror or error}")
    reason = str(error).partition("\n")[0] or type(error).__name__
    return InputError(f"{path} is not a Keras file of weights: {reason}")
