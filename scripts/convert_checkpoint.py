"""Converts a legacy PyTorch checkpoint of a multilayer perceptron to .npz, without PyTorch.

The public MLPNet of the WoodFisher, CBS and CHITA papers is `checkpoints/mnist_25_epoch_93.97.ckpt` in
https://github.com/IST-DASLab/WoodFisher:

    python scripts/convert_checkpoint.py mnist_25_epoch_93.97.ckpt $SA_JAX_DATA/mlpnet_mnist_93.97.npz

A checkpoint is a pickle, which can name any code to run. Here it can build containers, numbers, text and
tensors; every other name in it stands for nothing and cannot be called.
"""

import argparse
import collections
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from sa_jax.models import load_weights, network_of
from sa_jax.types import InputError

# Of the format that torch.save wrote before version 1.6: pickles of a magic number, a protocol version, the
# writer's type sizes, the object and the storages' keys, then the storages.
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class Storage(NamedTuple):
    """A flat buffer that follows the pickles."""

    key: str


class Tensor(NamedTuple):
    """A strided view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class NoCode(pickle.Unpickler):
    """Unpickles containers, numbers, text and tensors only; notes the dtype of each storage it meets."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.dtypes: dict[str, np.dtype] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Gives what builds tensors and ordered mappings; other names become text, which cannot be called."""
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor")):
            return _rebuild_tensor
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        return f"{module}.{name}"

    def persistent_load(self, pid: Any) -> Storage:
        """Gives a storage's place, to be read once the pickles have been."""
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"unknown storage {dtype}")
        self.dtypes[key] = dtype
        return Storage(key)


def _rebuild_tensor(storage: Storage, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
    return Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a legacy checkpoint, by their names in its state dict.

    Raises:
      InputError: the file cannot be read, is of another format, or holds more than tensors where they are.
    """
    try:
        with open(path, "rb") as file:
            return _read_tensors(file)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # whatever damaged pickles raise
        reason = str(error).split("\n")[0] or type(error).__name__
        raise InputError(f"{path} is not a legacy PyTorch checkpoint of tensors: {reason}") from None


def _read_tensors(file: BinaryIO) -> dict[str, np.ndarray]:
    if NoCode(file).load() != MAGIC or NoCode(file).load() != PROTOCOL:
        raise ValueError("wrong magic number; was it written by torch.save before version 1.6?")
    if not NoCode(file).load().get("little_endian", True):
        raise ValueError("big-endian storages")
    reader = NoCode(file)
    content = reader.load()
    nested = next((content[k] for k in ("model_state_dict", "state_dict") if k in content), content)
    tensors = {name: value for name, value in nested.items() if isinstance(value, Tensor)}
    storages = {}
    for key in NoCode(file).load():
        size = int.from_bytes(file.read(8), "little")
        dtype = reader.dtypes[key]
        buffer = file.read(size * dtype.itemsize)
        if len(buffer) != size * dtype.itemsize:
            raise ValueError("truncated")
        storages[key] = np.frombuffer(buffer, dtype)
    arrays = {}
    for name, tensor in tensors.items():
        storage = storages[tensor.storage.key]
        index = np.full(tensor.shape, tensor.offset)
        for axis, (length, stride) in enumerate(zip(tensor.shape, tensor.strides, strict=True)):
            index += (stride * np.arange(length)).reshape(-1, *[1] * (len(tensor.shape) - axis - 1))
        arrays[name] = storage[index]
    return arrays


def convert(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names arrays as `load_weights` takes them: `module.fc1._layer.weight` becomes `fc1.weight`.

    An array that ends in `_mask` is applied to the weight beside it, as the wrapped layer did.
    """
    masks, weights = {}, {}
    for name, array in arrays.items():
        name = re.sub(r"^module\.|\._layer(?=\.)", "", name)
        if match := re.fullmatch(r"(.*\.)_?(weight|bias)_mask", name):
            masks[match[1] + match[2]] = array
        else:
            weights[name] = array.astype(np.float32)
    return {name: weight * masks.get(name, np.float32(1)) for name, weight in weights.items()}


def main(argv: list[str] | None = None) -> int:
    """Converts, prints the network's layers, and returns the exit code."""
    parser = argparse.ArgumentParser(description="Convert a legacy PyTorch checkpoint to .npz, without PyTorch.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path, help="an .npz file, replaced if it exists")
    arguments = parser.parse_args(argv)
    aside = arguments.output.with_name(f".{os.getpid()}-{arguments.output.name}")
    try:
        if arguments.output.suffix != ".npz":
            raise InputError(f"{arguments.output}: the output must be an .npz file")
        arrays = convert(read_checkpoint(arguments.checkpoint))
        with open(aside, "wb") as file:
            np.savez(file, **dict[str, Any](arrays))
        network = network_of(load_weights(aside))[1]
        os.replace(aside, arguments.output)
    except InputError as error:
        print(f"convert_checkpoint: {str(error).replace(str(aside), str(arguments.checkpoint))}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"convert_checkpoint: {arguments.output} cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    finally:
        aside.unlink(missing_ok=True)
    print(f"{arguments.output}: {'-'.join(map(str, network.sizes))}, {network.total:,} branches")
    return 0


if __name__ == "__main__":
    sys.exit(main())
