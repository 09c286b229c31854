"""Reads and writes the content of Keras files, `.weights.h5`, `.h5` and `.keras`, without Keras. Needs h5py.

What the layers of a model compute is told by `keras_models`.
"""

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sa_jax.files import workdirs
from sa_jax.types import InputError

SUFFIXES = (".h5", ".keras")
# The weights and the config within a .keras archive.
MEMBER, CONFIG = "model.weights.h5", "config.json"
# Bytes of a config that are read; a model of a thousand layers has a megabyte.
MAX_CONFIG = 1 << 24
# Arrays that no layer computes with.
LEFT_OUT = ("optimizer/", "optimizer_weights/", "seed_generator/")


_LAYER = re.compile(r"(?:layers|_layer_checkpoint_dependencies)/([^/]+)/vars")


class Content(NamedTuple):
    """What a Keras file holds.

    Attributes:
      arrays: the layers' arrays, of any shape, by their paths in the HDF5 file.
      layers: the paths of each layer's arrays, in the order in which the layer keeps them. In files of Keras 3,
        layers are called by their classes, numbered, such as `dense_1`; in the older `.h5`, by their own names.
      config: the config of the model, None if the file holds weights alone.
    """

    arrays: dict[str, np.ndarray]
    layers: dict[str, list[str]]
    config: Any


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the layers' arrays, of any shape, by their paths in the HDF5 file.

    Links to other files are not followed.

    Raises:
      InputError: h5py is missing, or the file cannot be read, is damaged, keeps arrays in other files, or declares
        larger arrays than it holds.
    """
    return read(path).arrays


def read(path: Path) -> Content:
    """Reads the arrays and the config of a file; raises as `read_arrays` does."""
    h5py = _h5py(path)
    try:
        whole = path.read_bytes()
        content = _weights(whole, path.suffix)
        left, arrays, layers = len(content), {}, {}

        def take(place: str, found: Any) -> None:
            nonlocal left
            named = place + "/"
            if isinstance(found, h5py.Group):
                if layer := _LAYER.fullmatch(place):
                    layers[layer[1]] = [f"{place}/{number}" for number in range(len(found))]
                elif "weight_names" in found.attrs:
                    known = map(_text, found.attrs["weight_names"])
                    layers[place.removeprefix("model_weights/")] = [f"{place}/{name}" for name in known]
                return
            if not isinstance(found, h5py.Dataset) or any(part in named for part in LEFT_OUT):
                return
            if found.is_virtual or found.external is not None:
                raise ValueError(f"{place} is stored in another file")
            left -= found.nbytes
            if left < 0:
                raise ValueError(f"{place} is compressed or larger than the file")
            array = np.asarray(found[()])
            # HDF5 has no bfloat16: Keras writes two bytes without a type.
            arrays[place] = array.view(jnp.bfloat16) if array.dtype == "V2" else array

        with h5py.File(io.BytesIO(content), "r") as file:
            file.visititems(take)
            config = file.attrs.get("model_config")
        if path.suffix == ".keras":
            config = _member(whole, CONFIG, MAX_CONFIG)
        return Content(arrays, layers, None if config is None else json.loads(config))
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
                file[place][...] = array.view("V2") if array.dtype == jnp.bfloat16 else array
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
    return _member(content, MEMBER, len(content)) if suffix == ".keras" else content


def _member(archive: bytes, name: str, most: int) -> bytes:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        if opened.getinfo(name).file_size > most:
            raise ValueError(f"{name} in it is longer than {most} bytes")
        return opened.read(name)


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


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
