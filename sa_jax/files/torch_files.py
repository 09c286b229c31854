"""Reads the tensors of PyTorch files without PyTorch and without running code that a pickle names.

A checkpoint is a pickle, and a pickle can name any code to run. Here the opcodes of the pickle are interpreted one
by one. They can build containers, numbers, text and references to tensors. Any other name in the pickle is kept as
a name and never called.
"""

import io
import math
import pickletools
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import jax.numpy as jnp
import numpy as np

from sa_jax.types import InputError

# The format that torch.save wrote before version 1.6: pickles of a magic number, a protocol version, the writer's
# type sizes, the object and the storages' keys, then the storages.
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
# Tensors may share a storage, as tied weights do. All tensors together may be this many times as large as the
# storages.
MAX_SHARED = 8
# Names under which training scripts save a state dict beside other things.
STATE_DICTS = ("model_state_dict", "state_dict", "model")
MARK = object()
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": MARK}
VALUES = frozenset(
    ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
    + ("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
    + ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
)


class Name(NamedTuple):
    """A name in a pickle. It is never looked up."""

    module: str
    name: str


class Storage(NamedTuple):
    """A flat buffer in another place of the file."""

    key: str
    dtype: np.dtype


class Tensor(NamedTuple):
    """A strided view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors, of any shape, of a file of `torch.save`, by their names in the state dict.

    Reads the format before PyTorch 1.6 and the one since. The file may hold a state dict alone, or a mapping that
    has the state dict under a name of `STATE_DICTS`. Identical tensors, such as tied weights, become one array. No
    array is larger than its storage.

    Raises:
      InputError: the file cannot be read, is damaged or of another format, or holds other objects than tensors
        and plain values, such as a whole module.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        return _from_zip(content) if content[:2] == b"PK" else _from_legacy(content)
    except Exception as error:  # damaged archives and pickles raise many errors
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} is not a PyTorch file of tensors: {reason}") from None


def _from_zip(content: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {member.filename: member for member in archive.infolist()}
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it has no data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        left = len(content)

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


def _from_legacy(content: bytes) -> dict[str, np.ndarray]:
    file = io.BytesIO(content)
    if unpickle(file) != MAGIC or unpickle(file) != PROTOCOL:
        raise ValueError("wrong magic number")
    if not unpickle(file).get("little_endian", True):
        raise ValueError("big-endian storages")
    seen: dict[str, np.dtype] = {}
    tensors = _state_dict(unpickle(file, seen))
    buffers = {}
    for key in unpickle(file):
        size = int.from_bytes(file.read(8), "little") * seen[key].itemsize
        buffers[key] = file.read(size) if size <= len(content) else b""
        if len(buffers[key]) != size:
            raise ValueError("truncated")
    return _arrays(tensors, buffers)


def _state_dict(content: Any) -> dict[str, Tensor]:
    if isinstance(content, dict):
        content = next((content[name] for name in STATE_DICTS if isinstance(content.get(name), dict)), content)
        tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return {str(name): tensor for name, tensor in tensors.items()}
    raise ValueError("it holds no named tensors; save model.state_dict()")


def _arrays(tensors: dict[str, Tensor], buffers: dict[str, bytes]) -> dict[str, np.ndarray]:
    made: dict[Tensor, np.ndarray] = {}
    left = MAX_SHARED * sum(map(len, buffers.values()))
    for name, tensor in tensors.items():
        if tensor in made:
            continue
        storage, offset, shape, strides = tensor
        flat = np.frombuffer(buffers[storage.key], storage.dtype)
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        size = math.prod(shape)
        if min(offset, *shape, *strides, 0) < 0 or (size and last >= flat.size):
            raise ValueError(f"tensor {name!r} reaches beyond its storage")
        left -= size * storage.dtype.itemsize
        if size > flat.size or left < 0:
            raise ValueError(f"tensor {name!r} is larger than its storage")
        in_bytes = [stride * storage.dtype.itemsize for stride in strides]
        made[tensor] = np.lib.stride_tricks.as_strided(flat[offset:], shape, in_bytes).copy()
    return {name: made[tensor] for name, tensor in tensors.items()}


def unpickle(file: BinaryIO, dtypes: dict[str, np.dtype] | None = None) -> Any:
    """Builds the object of one pickle, from containers, numbers, text, `Name`, `Storage` and `Tensor` only.

    Args:
      file: read from its current position to the end of the pickle.
      dtypes: a dictionary that is filled with the dtype of each storage, by its key.

    Raises:
      ValueError: the pickle calls or builds anything else. Damaged pickles raise other errors too.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, given, _ in pickletools.genops(file):
        kind, argument = opcode.name, cast(Any, given)
        if kind in CONSTANTS:
            stack.append(CONSTANTS[kind])
        elif kind in VALUES:
            stack.append(argument)
        elif kind in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if kind == "EMPTY_DICT" else [])
        elif kind in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else int(argument)] = stack[-1]
        elif kind in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])
        elif kind in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack[-int(kind[-1]) :] = [tuple(stack[-int(kind[-1]) :])]
        elif kind in ("TUPLE", "LIST", "DICT"):
            items = _since_mark(stack)
            stack.append({"TUPLE": tuple, "LIST": list, "DICT": _pairs}[kind](items))
        elif kind in ("APPEND", "APPENDS"):
            items = [stack.pop()] if kind == "APPEND" else _since_mark(stack)
            stack[-1].extend(items)
        elif kind in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if kind == "SETITEM" else _since_mark(stack)
            stack[-1].update(_pairs(items))
        elif kind == "GLOBAL":
            stack.append(Name(*argument.split(" ", 1)))
        elif kind == "STACK_GLOBAL":
            stack[-2:] = [Name(*stack[-2:])]
        elif kind == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_called(function, arguments))
        elif kind == "BINPERSID":
            stack.append(_storage(stack.pop(), dtypes))
        elif kind == "BUILD" and isinstance(stack[-2], dict):
            stack.pop()  # attributes of an ordered mapping
        elif kind == "STOP":
            return stack.pop()
        elif kind not in ("PROTO", "FRAME"):
            raise ValueError(f"it builds more than tensors and plain values ({kind}); save model.state_dict()")


def _since_mark(stack: list[Any]) -> list[Any]:
    last = next(i for i in reversed(range(len(stack))) if stack[i] is MARK)
    items = stack[last + 1 :]
    del stack[last:]
    return items


def _pairs(items: list[Any]) -> dict[Any, Any]:
    # Hashing a deeply nested tuple would overflow the interpreter's stack.
    if not all(isinstance(key, str | int | float) for key in items[::2]):
        raise ValueError("its mappings have keys that are neither text nor numbers")
    return dict(zip(items[::2], items[1::2], strict=True))


def _called(function: Any, arguments: Any) -> Any:
    if function == Name("collections", "OrderedDict"):
        return _pairs([part for pair in arguments[0] for part in pair] if arguments else [])
    if function == Name("torch._utils", "_rebuild_parameter"):
        return arguments[0]
    if function in (Name("torch._utils", "_rebuild_tensor_v2"), Name("torch._utils", "_rebuild_tensor")):
        storage, offset, shape, strides = arguments[:4]
        if not isinstance(storage, Storage) or not all(isinstance(n, int) for n in (offset, *shape, *strides)):
            raise ValueError("a tensor has no storage, or a shape that is not made of whole numbers")
        return Tensor(storage, offset, tuple(shape), tuple(strides))
    named = ".".join(map(str, function)) if isinstance(function, Name) else "an object without a name"
    raise ValueError(f"it asks to call {named}, which is never done; save model.state_dict()")


def _storage(place: Any, dtypes: dict[str, np.dtype] | None) -> Storage:
    kind, dtype, key, *_, view = place
    known = isinstance(dtype, Name) and dtype.module == "torch" and dtype.name in DTYPES
    if kind != "storage" or not known or not isinstance(key, str) or isinstance(view, tuple):
        raise ValueError(f"a storage has an unknown type, {'.'.join(map(str, dtype))}")
    if dtypes is not None:
        dtypes[key] = DTYPES[dtype.name]
    return Storage(key, DTYPES[dtype.name])
