"""Reads and writes the tensors of PyTorch files without PyTorch and without running code that a pickle names."""

import io
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sa_jax.files.bounded import Bounded
from sa_jax.files.torch_pickles import Inert, Name, Storage, Tensor, Unread, pickled, unpickle
from sa_jax.types import InputError

# The format that torch.save wrote before version 1.6: pickles of a magic number, a protocol version, the writer's
# type sizes, the object and the storages' keys, then the storages.
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
# Tensors may share a storage, as tied weights do. All tensors together may be this many times as large as the
# storages.
MAX_SHARED = 8
# Names under which training scripts save a state dict beside other things.
STATE_DICTS = ("model_state_dict", "state_dict", "model")
# How deep in a file a state dict may lie.
MAX_DEPTH = 8
# The folder of all members of a file that is written.
ROOT = "archive"
# Storages begin at multiples of this many bytes, as in files of torch.save.
ALIGNMENT = 64


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors, of any shape, of a file of `torch.save`, by their names in the state dict.

    Reads the format before PyTorch 1.6 and the one since. Objects that are neither containers, numbers, text nor
    tensors are left out; none is built. The state dict may be the whole file, or lie in mappings within it:

    1. On each level, `model_state_dict`, `state_dict` and `model` are tried first, in this order.
    2. A mapping with a tensor of two or more axes is a state dict. What lies within it is not looked at.
    3. Otherwise all entries with a name are looked through, to a depth of `MAX_DEPTH`, and exactly one state dict
       may be found. Lists and entries with a number, such as those of an optimizer, are not looked through.

    Identical tensors, such as tied weights, become one array. No array is larger than its storage.

    Raises:
      InputError: the file cannot be read, is damaged or of another format; it holds no state dict, or several; or
        a tensor in the state dict is sparse, quantized or of another kind that is not read.
    """
    try:
        file = Bounded(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        with file:
            start = file.read(2)
            file.seek(0)
            return _from_zip(file) if start == b"PK" else _from_legacy(file)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # damaged archives and pickles raise many errors
        told = isinstance(error, ValueError | RuntimeError | OSError | zipfile.BadZipFile)
        reason = one_line(error, 200) if told else "its pickle is damaged"
        raise InputError(f"{path} is not a PyTorch file of tensors: {reason}") from None


def _from_zip(file: BinaryIO) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it has no data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        left = _length(file)

        def member(name: str) -> bytes:
            nonlocal left
            if name not in members:
                raise ValueError(f"{name} is missing")
            left -= members[name].file_size
            if members[name].compress_type != zipfile.ZIP_STORED or left < 0:
                raise ValueError(f"{name} is compressed or longer than the file")
            return archive.read(name)

        if root + "byteorder" in members and member(root + "byteorder") != b"little":
            raise ValueError("big-endian storages")
        tensors = _state_dict(unpickle(io.BytesIO(member(pickles[0]))))
        needed = {tensor.storage.key for tensor in tensors.values()}
        buffers = {key: member(f"{root}data/{key}") for key in sorted(needed)}
    return _arrays(tensors, buffers)


def _from_legacy(file: BinaryIO) -> dict[str, np.ndarray]:
    if unpickle(file) != MAGIC or unpickle(file) != PROTOCOL:
        raise ValueError("wrong magic number")
    sizes = unpickle(file)
    if not isinstance(sizes, dict) or not sizes.get("little_endian", True):
        raise ValueError("big-endian storages")
    seen: dict[str, Storage] = {}
    tensors = _state_dict(unpickle(file, seen))
    keys, length = unpickle(file), _length(file)
    needed = {tensor.storage.key for tensor in tensors.values()}
    buffers = {}
    for key in keys:
        if not isinstance(key, str) or key not in seen:
            raise ValueError("it lists a storage that no tensor has")
        size = int.from_bytes(file.read(8), "little") * seen[key].dtype.itemsize
        if size > length - file.tell():
            raise ValueError("truncated")
        if key in needed:
            buffers[key] = file.read(size)
        else:
            file.seek(size, os.SEEK_CUR)
    return _arrays(tensors, buffers)


def _length(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _state_dict(content: Any) -> dict[str, Tensor]:
    whole = content
    for _ in range(MAX_DEPTH):
        content = content[known] if (known := _known(content)) else content
    found = _state_dicts(content) or {(): content}
    if len(found) > 1:
        places = ", ".join(one_line(".".join(place)) for place in list(found)[:5]) + (
            ", ..." if len(found) > 5 else ""
        )
        raise InputError(f"its tensors lie under several names, {places}: save one of them alone")
    (mapping,) = found.values()
    named = {str(name): value for name, value in mapping.items()} if isinstance(mapping, dict) else {}
    for name, value in named.items():
        if isinstance(value, Unread):
            raise _unread(name, value.kind)
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        what = f"an object of {one_line(whole.name)} and " if isinstance(whole, Inert) and whole.name else ""
        raise ValueError(f"it holds {what}no named tensors; save model.state_dict()")
    return tensors


def _known(content: Any) -> str | None:
    """The first of the usual names under which a mapping holds another."""
    if not isinstance(content, dict):
        return None
    return next((name for name in STATE_DICTS if isinstance(content.get(name), dict)), None)


def _state_dicts(content: Any) -> dict[tuple[str, ...], dict[Any, Any]]:
    """The state dicts in what a file holds, by the names that lead to them."""
    found: dict[tuple[str, ...], dict[Any, Any]] = {}
    seen: set[int] = set()  # a mapping may lie in several places, or in itself
    ahead: list[tuple[tuple[str, ...], Any]] = [((), content)]
    for place, mapping in ahead:  # which grows
        if not isinstance(mapping, dict) or id(mapping) in seen:
            continue
        seen.add(id(mapping))
        known = _known(mapping)
        if known is None and any(map(_is_kernel, mapping.values())):
            found[place] = mapping
        elif len(place) < MAX_DEPTH:
            names = mapping if known is None else [known]
            ahead += [((*place, name), mapping[name]) for name in names if isinstance(name, str)]
    return found


def _is_kernel(value: Any) -> bool:
    return isinstance(value, Unread) or (isinstance(value, Tensor) and len(value.shape) > 1)


def _unread(name: str, kind: Name) -> InputError:
    what = f"tensor {one_line(name)!r} is"
    if kind.name.startswith("_rebuild_sparse"):
        return InputError(f"{what} sparse: save its to_dense()")
    if kind.name == "_rebuild_qtensor":
        return InputError(f"{what} quantized: save its dequantize()")
    return InputError(f"{what} of the kind {one_line(kind)}, which is not read")


def _arrays(tensors: dict[str, Tensor], buffers: dict[str, bytes]) -> dict[str, np.ndarray]:
    made: dict[Tensor, np.ndarray] = {}
    left = MAX_SHARED * sum(map(len, buffers.values()))
    for name, tensor in tensors.items():
        if tensor in made:
            continue
        storage, dtype, offset, shape, strides = tensor
        buffer = buffers[storage.key]
        length = len(buffer) // dtype.itemsize
        last = offset + sum((axis - 1) * stride for axis, stride in zip(shape, strides, strict=True))
        size = math.prod(shape)
        if min(offset, *shape, *strides, 0) < 0 or (size and last >= length):
            raise ValueError(f"tensor {name!r} reaches beyond its storage")
        left -= size * dtype.itemsize
        if size > length or left < 0:
            raise ValueError(f"tensor {name!r} is larger than its storage")
        in_bytes = [stride * dtype.itemsize for stride in strides]
        start = offset * dtype.itemsize if size else 0
        made[tensor] = np.ndarray(shape, dtype, buffer, start, in_bytes if size else None).copy()
    return {name: made[tensor] for name, tensor in tensors.items()}


def one_line(text: Any, length: int = 80) -> str:
    """Returns the beginning of a text, an error or a name on one line, without what a terminal would obey."""
    text = str(text)[:length] or type(text).__name__
    return "".join(letter if letter.isprintable() else " " for letter in text)


def torch_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns the content of a PyTorch file that holds a state dict, for `torch.load(path, weights_only=True)`.

    Args:
      arrays: the tensors by name, of any shape, byte order and memory layout, and of types that `has_type` knows.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        _add(archive, "data.pkl", pickled(arrays))
        _add(archive, "byteorder", b"little")
        for key, array in enumerate(arrays.values()):
            _add(archive, f"data/{key}", array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        _add(archive, "version", b"3\n")
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    member = zipfile.ZipInfo(f"{ROOT}/{name}")
    # The local header has 30 bytes, the name, and 4 bytes before the padding.
    begin = archive.start_dir + 30 + len(member.filename) + 4
    padding = -begin % ALIGNMENT
    member.extra = b"FB" + padding.to_bytes(2, "little") + bytes(padding)
    archive.writestr(member, content)
