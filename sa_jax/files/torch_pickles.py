"""Interprets the pickles of PyTorch files without running code that they name, and writes such pickles.

A pickle can name any code to run. Here its opcodes are interpreted one by one. They can build containers, numbers,
text and references to tensors. Any other object becomes an `Inert` placeholder: its name is never looked up, and
nothing is called.
"""

import math
import pickletools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO, NamedTuple, cast

import jax.numpy as jnp
import numpy as np

# The types of the storages that torch.save names. Those of quantized tensors are the integers that they hold.
STORAGES = {
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
    "ComplexFloatStorage": np.dtype("<c8"),
    "ComplexDoubleStorage": np.dtype("<c16"),
    "QInt8Storage": np.dtype("i1"),
    "QUInt8Storage": np.dtype("u1"),
    "QInt32Storage": np.dtype("<i4"),
    "QUInt4x2Storage": np.dtype("u1"),
    "QUInt2x4Storage": np.dtype("u1"),
    "UntypedStorage": np.dtype("u1"),
}
# The types of tensors over an untyped storage.
UNTYPED = {
    name: np.dtype(getattr(jnp, name))
    for name in (
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
        *("uint16", "uint32", "uint64"),
    )
}
STORAGE_OF = {dtype.name: storage for storage, dtype in reversed(STORAGES.items())}
MAX_AXES = 64
MAX_ARGUMENTS = 16  # of the functions in `REBUILT`
MARK = object()
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": MARK}
VALUES = frozenset(
    ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
    + ("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
    + ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
)


class Name(NamedTuple):
    """A name in a pickle. It is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Inert(NamedTuple):
    """In place of an object that was not built: the name that would have been called, if there is one."""

    name: Name | None


class Unread(NamedTuple):
    """In place of a tensor of a kind that is not read: the function that rebuilds it, or its type."""

    kind: Name


class Storage(NamedTuple):
    """A flat buffer in another place of the file."""

    key: str
    dtype: np.dtype


class Tensor(NamedTuple):
    """A strided view of a storage; offset and strides count elements."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def unpickle(file: BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """Builds the object of one pickle, from containers, numbers, text and the types of this module only.

    Time and memory are bounded by the length of the pickle. Objects may hold themselves, and be nested deeply.

    Args:
      file: read from its current position to the end of the pickle.
      storages: a dictionary that is filled with the storages, by their keys.

    Raises:
      ValueError: the pickle is not one of PyTorch. Damaged pickles raise other errors too.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, given, _ in pickletools.genops(file):
        kind, argument = opcode.name, cast(Any, given)
        if kind in CONSTANTS:
            stack.append(CONSTANTS[kind])
        elif kind in VALUES:
            stack.append(argument)
        elif kind in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": _set}[kind]())
        elif kind in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else int(argument)] = stack[-1]
        elif kind in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])
        elif kind in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack[-int(kind[-1]) :] = [tuple(stack[-int(kind[-1]) :])]
        elif kind in ("TUPLE", "LIST", "DICT", "FROZENSET"):
            items = _since_mark(stack)
            stack.append({"TUPLE": tuple, "LIST": list, "DICT": _pairs, "FROZENSET": _set}[kind](items))
        elif kind in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if kind == "APPEND" else _since_mark(stack)
            if not isinstance(stack[-1], Inert):
                stack[-1].extend(items)
        elif kind in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if kind == "SETITEM" else _since_mark(stack)
            if not isinstance(stack[-1], Inert):
                stack[-1].update(_pairs(items))
        elif kind in ("GLOBAL", "STACK_GLOBAL"):
            parts = argument.split(" ", 1) if kind == "GLOBAL" else [stack.pop(), stack.pop()][::-1]
            stack.append(_name(*parts))
        elif kind in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(_called(function, arguments) if kind == "REDUCE" else _inert(function))
        elif kind == "NEWOBJ_EX":
            del stack[-2:]
            stack.append(_inert(stack.pop()))
        elif kind in ("INST", "OBJ"):
            items = _since_mark(stack)
            stack.append(_inert(_name(*argument.split(" ", 1)) if kind == "INST" else items[0]))
        elif kind in ("EXT1", "EXT2", "EXT4"):
            stack.append(Inert(None))
        elif kind == "BINPERSID":
            stack.append(_storage(stack.pop(), storages))
        elif kind == "BUILD" and isinstance(stack[-2], dict | Inert):
            stack.pop()  # attributes, such as those of an ordered mapping
        elif kind == "DUP":
            stack.append(stack[-1])
        elif kind in ("POP", "POP_MARK"):
            _ = stack.pop() if kind == "POP" else _since_mark(stack)
        elif kind == "STOP":
            return stack.pop()
        elif kind not in ("PROTO", "FRAME"):
            raise ValueError(f"its pickle has the unexpected opcode {kind}")


def _since_mark(stack: list[Any]) -> list[Any]:
    last = next(i for i in reversed(range(len(stack))) if stack[i] is MARK)
    items = stack[last + 1 :]
    del stack[last:]
    return items


def _set(items: Iterable[Any] = ()) -> Inert:
    return Inert(Name("builtins", "set"))


def _pairs(items: list[Any]) -> dict[Any, Any]:
    # Other keys are not needed, and hashing a deeply nested tuple would overflow the interpreter's stack.
    pairs = zip(items[::2], items[1::2], strict=True)
    return {key: value for key, value in pairs if isinstance(key, str | int | float)}


def _name(module: Any, name: Any) -> Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a name in it is not text")
    return Name(module, name)


def _inert(function: Any) -> Inert:
    return Inert(function if isinstance(function, Name) else None)


def _called(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Name) or not isinstance(arguments, tuple) or len(arguments) > MAX_ARGUMENTS:
        return _inert(function)
    if function in REBUILT:
        return REBUILT[function](*arguments)
    if function.module in ("torch._utils", "torch._tensor") and function.name.startswith("_rebuild"):
        return Unread(function)
    return Inert(function)


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    if not pairs:
        return {}
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError("an ordered mapping in it is not made of pairs")
    made = _pairs([part for pair in pairs for part in pair])
    pairs.clear()  # so that no pickle copies a long list many times
    return made


def _strided(storage: Any, offset: Any, shape: Any, strides: Any, *others: Any) -> Tensor | Unread:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor has no storage")
    if others[2:] and others[2]:  # a lazily conjugated or negated view
        return Unread(Name("torch", "conj, or a negated view"))
    return _tensor(storage, storage.dtype, offset, shape, strides)


def _typed(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *others: Any
) -> Tensor | Unread:
    if not isinstance(storage, Storage) or not isinstance(dtype, Name):
        raise ValueError("a tensor has no storage, or no type")
    if dtype.name not in UNTYPED or (others and others[0]):
        return Unread(dtype)
    return _tensor(storage, UNTYPED[dtype.name], offset, shape, strides)


def _tensor(storage: Storage, dtype: np.dtype, offset: Any, shape: Any, strides: Any) -> Tensor:
    for numbers in (shape, strides, (offset,)):
        whole = isinstance(numbers, tuple | list) and len(numbers) <= MAX_AXES
        if not whole or not all(isinstance(n, int) and abs(n) < 2**62 for n in numbers):
            raise ValueError("a tensor has a shape that is not made of whole numbers")
    if len(shape) != len(strides):
        raise ValueError("a tensor has not as many strides as axes")
    return Tensor(storage, dtype, offset, tuple(shape), tuple(strides))


def _parameter(tensor: Any, *others: Any) -> Any:
    return tensor


def _of_type(function: Any, kind: Any, arguments: Any, *others: Any) -> Any:
    plain = [
        Name("torch", "Tensor"),
        Name("torch.nn.parameter", "Parameter"),
        Name("torch.nn.parameter", "Buffer"),
    ]
    if not isinstance(kind, Name):
        return Inert(None)
    return _called(function, arguments) if kind in plain else Unread(kind)


# What is done in place of the functions that torch.save names for tensors.
REBUILT: dict[Name, Callable[..., Any]] = {
    Name("collections", "OrderedDict"): _ordered,
    Name("torch._utils", "_rebuild_tensor"): _strided,
    Name("torch._utils", "_rebuild_tensor_v2"): _strided,
    Name("torch._utils", "_rebuild_tensor_v3"): _typed,
    Name("torch._utils", "_rebuild_parameter"): _parameter,
    Name("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    Name("torch._tensor", "_rebuild_from_type_v2"): _of_type,
}


def _storage(place: Any, storages: dict[str, Storage] | None) -> Storage | Inert:
    if not isinstance(place, tuple) or not place or place[0] != "storage":
        return Inert(None)  # the source text of a module, in old files
    _, dtype, key, *_, view = place
    if not isinstance(dtype, Name) or not isinstance(key, str) or isinstance(view, tuple):
        raise ValueError("a storage has no type, or is a part of another")
    if dtype.module not in ("torch", "torch.storage") or dtype.name not in STORAGES:
        raise ValueError(f"a storage has an unknown type, {dtype}")
    storage = Storage(key, STORAGES[dtype.name])
    if storages is not None:
        storages[key] = storage
    return storage


def has_type(dtype: np.dtype) -> bool:
    """Whether PyTorch has a type."""
    return dtype.name in STORAGE_OF or dtype.name in UNTYPED


def pickled(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns the pickle of a state dict, as PyTorch reads it.

    Args:
      arrays: the tensors by name, of any shape. The tensor at place i has the whole storage with the key `str(i)`,
        and a type that `has_type` knows.
    """
    ordered = _global(Name("collections", "OrderedDict")) + b")R"
    items = b"".join(_text(name) + _rebuilt(str(i), array) for i, (name, array) in enumerate(arrays.items()))
    return b"\x80\x02" + ordered + b"(" + items + b"u."


def _rebuilt(key: str, array: np.ndarray) -> bytes:
    kind = array.dtype.name
    typed = kind in STORAGE_OF
    storage = Name("torch", STORAGE_OF[kind]) if typed else Name("torch.storage", "UntypedStorage")
    length = _number(array.size if typed else array.nbytes)
    place = _tuple(_text("storage"), _global(storage), _text(key), _text("cpu"), length) + b"Q"
    shape = _tuple(*map(_number, array.shape))
    strides = _tuple(*(_number(math.prod(array.shape[axis + 1 :])) for axis in range(array.ndim)))
    hooks = _global(Name("collections", "OrderedDict")) + b")R"
    others = [] if typed else [_global(Name("torch", kind))]
    function = _global(Name("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3"))
    return function + _tuple(place, _number(0), shape, strides, b"\x89", hooks, *others) + b"R"


def _tuple(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def _global(name: Name) -> bytes:
    return f"c{name.module}\n{name.name}\n".encode()


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def _number(number: int) -> bytes:
    length = number.bit_length() // 8 + 1
    return b"\x8a" + bytes([length]) + number.to_bytes(length, "little", signed=True)
