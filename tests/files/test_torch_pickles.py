"""Pickles: what is built of them, what stays inert, and what is refused."""

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import pathlib
import types
import uuid

import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.files import torch_files, weights
from tests.conftest import refusal
from tests.files.torch_pickles import Call, Name, legacy, tensor, typed, zipped, zipped_bytes

SQUARE = np.arange(4, dtype=np.float32).reshape(2, 2)
KERNEL = tensor("0", (2, 2), (2, 1), 4)
# torch.save pickles with protocol 2 unless it is told otherwise.
PROTOCOLS = (2, 3, 4, 5)


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "sa_jax.files.load"])
def test_no_code_is_run(tmp_path, name):
    touched = tmp_path / "touched"
    evil = Call(name, f"touch {touched}")
    with refusal("net.pt is not a PyTorch file of tensors", "no named tensors; save model.state_dict()"):
        torch_files.read_tensors(zipped(tmp_path / "net.pt", {"fc.weight": evil}, {}))
    with refusal(f"it holds an object of {name} and no named tensors"):
        torch_files.read_tensors(zipped(tmp_path / "net.pt", evil, {}))
    content = {"fc.weight": KERNEL, "evil": evil, "more": [evil, {evil: evil}]}
    found = torch_files.read_tensors(zipped(tmp_path / "net.pt", content, {"0": SQUARE}))
    assert found.keys() == {"fc.weight"}
    assert not touched.exists()


class Kind(enum.Enum):
    """A kind."""

    ONE = 1
    TWO = "two"


class Number(enum.IntEnum):
    """A number."""

    ONE = 1


@dataclasses.dataclass
class Config:
    """Settings."""

    rate: float = 0.1
    sizes: tuple = (1, 2)


class AttributeDict(dict):
    """Hyper-parameters, as Lightning saves them."""


class Slots:
    """An object with slots."""

    __slots__ = ("a",)

    def __init__(self):
        self.a = 1


class WithArguments(tuple):
    """Is built again by __getnewargs_ex__."""

    def __getnewargs_ex__(self):
        return ((1, 2),), {}


RECURSIVE = argparse.Namespace()
RECURSIVE.own = [RECURSIVE]
OTHERS = {
    "namespace": argparse.Namespace(lr=0.1, layers=[1, 2], path=pathlib.Path("/data")),
    "simple namespace": types.SimpleNamespace(a=1),
    "numpy scalar": [np.float64(0.3), np.int64(3), np.bool_(True)],
    "numpy array": {"seen": np.arange(5), "state": np.random.default_rng(0)},
    "dtype": np.dtype(">f4"),
    "path": pathlib.PurePosixPath("a/b"),
    "enum": [Kind.ONE, Kind.TWO, Number.ONE],
    "key": {Kind.ONE: 1, (1, (2,)): 2, None: 3, b"x": 4, 0.5: 5, True: 6},
    "dataclass": Config(),
    "time": [
        datetime.datetime(2020, 1, 1),
        datetime.date(2020, 1, 1),
        datetime.timedelta(1),
        datetime.UTC,
    ],
    "hyper-parameters": AttributeDict(a=1, b=AttributeDict(c=KERNEL)),
    "slots": Slots(),
    "set": [{1, "a"}, frozenset([1])],
    "ordered": collections.OrderedDict(a=1, b=2),
    "collections": [
        collections.defaultdict(list, {"a": [1]}),
        collections.Counter("aab"),
        collections.deque([1, 2]),
    ],
    "numbers": [10**40, -5, 3j, float("nan"), decimal.Decimal("1.5"), slice(1, 2), range(3), ...],
    "bytes": [b"abc", bytearray(b"abc")],
    "uuid": uuid.UUID(int=3),
    "class": [Config, dict, len],
    "error": ValueError("x"),
    "arguments": WithArguments((1, 2)),
    "recursive": RECURSIVE,
    "device": [Call("torch.device", "cuda", 0), Name("torch.float32"), Call("torch.Size", (1, 2))],
    "omegaconf": Call("omegaconf.dictconfig.DictConfig", {"a": 1}),
    "tensor of another kind": Call("torch._utils._rebuild_qtensor", (), 0, (2, 2)),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", OTHERS)
def test_other_objects_are_left_out(tmp_path, name, protocol):
    """They lie beside the state dict, in it, and as attributes of it."""
    found = {}
    for number, content in enumerate(
        (
            {"epoch": 3, "first": OTHERS[name], "state_dict": {"fc.weight": KERNEL}, "last": OTHERS[name]},
            {"fc.weight": KERNEL, "other": [OTHERS[name]]},
        )
    ):
        path = zipped(tmp_path / f"{number}.pt", content, {"0": SQUARE}, protocol=protocol)
        found[number] = torch_files.read_tensors(path)
    for one in found.values():
        assert one.keys() == {"fc.weight"}
        np.testing.assert_array_equal(one["fc.weight"], SQUARE)


def test_other_objects_are_left_out_of_old_files_too(tmp_path):
    legacy(tmp_path / "net.pt", {"net": {"fc.weight": KERNEL}, "others": [*OTHERS.values()]}, {"0": SQUARE})
    np.testing.assert_array_equal(torch_files.read_tensors(tmp_path / "net.pt")["fc.weight"], SQUARE)


BY_HAND = collections.OrderedDict()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (Call("torch._utils._rebuild_sparse_tensor", Name("torch.sparse_coo"), ()), "sparse: save its to_dense()"),
        (Call("torch._utils._rebuild_sparse_csr_tensor", ()), "sparse: save its to_dense()"),
        (Call("torch._utils._rebuild_qtensor", ()), "quantized: save its dequantize()"),
        (
            Call("torch._utils._rebuild_meta_tensor_no_storage", ()),
            "of the kind torch._utils._rebuild_meta_tensor_no_storage, which is not read",
        ),
        (typed("0", (2, 2), (2, 1), 16, "torch.complex32"), "of the kind torch.complex32, which is not read"),
        (
            Call(
                "torch._tensor._rebuild_from_type_v2",
                Name("torch._utils._rebuild_tensor_v2"),
                Name("my.Params4bit"),
                KERNEL.arguments,
                {},
            ),
            "of the kind my.Params4bit, which is not read",
        ),
        (
            Call("torch._utils._rebuild_tensor_v2", *KERNEL.arguments[:5], BY_HAND, {"neg": True}),
            "of the kind torch.conj, or a negated view, which is not read",
        ),
    ],
)
def test_tensors_of_other_kinds_are_named(tmp_path, value, problem):
    zipped(tmp_path / "net.pt", {"model": {"in.weight": KERNEL, "out.weight": value}}, {"0": SQUARE})
    with refusal(f"net.pt: tensor 'out.weight' is {problem}"):
        torch_files.read_tensors(tmp_path / "net.pt")
    # They do no harm beside the state dict.
    zipped(tmp_path / "net.pt", {"model": {"in.weight": KERNEL}, "other": {"out.weight": value}}, {"0": SQUARE})
    assert torch_files.read_tensors(tmp_path / "net.pt").keys() == {"in.weight"}


def test_parameters_and_tensors_with_attributes_are_tensors(tmp_path):
    with_attribute = Call(
        "torch._tensor._rebuild_from_type_v2",
        Name("torch._utils._rebuild_tensor_v2"),
        Name("torch.Tensor"),
        KERNEL.arguments,
        {"note": argparse.Namespace()},
    )
    parameter = Call("torch._utils._rebuild_parameter", KERNEL, True, BY_HAND)
    tagged = Call("torch._utils._rebuild_parameter_with_state", KERNEL, True, BY_HAND, {"tag": 1})
    content = {"a.weight": with_attribute, "b.weight": parameter, "c.weight": tagged}
    found = torch_files.read_tensors(zipped(tmp_path / "net.pt", content, {"0": SQUARE}))
    for name in content:
        np.testing.assert_array_equal(found[name], SQUARE)


@pytest.mark.parametrize(
    "kind", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "uint16", "uint32", "uint64"]
)
def test_types_without_a_storage_of_their_own_are_read(tmp_path, kind):
    array = SQUARE.astype(getattr(jnp, kind))
    content = {"fc.weight": typed("0", (2, 2), (1, 2), array.nbytes, f"torch.{kind}")}
    found = torch_files.read_tensors(zipped(tmp_path / "net.pt", content, {"0": array}))["fc.weight"]
    assert found.dtype == getattr(jnp, kind)
    np.testing.assert_array_equal(found.astype(np.float32), SQUARE.T)
    np.testing.assert_array_equal(weights.load(tmp_path / "net.pt")["fc"]["kernel"], SQUARE)


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


MANY = 100_000
ORDERED = b"ccollections\nOrderedDict\n"


@pytest.mark.parametrize(
    "pickled",
    {
        "a mapping in itself": b"}q\x00" + text("model") + b"h\x00s.",
        "a deep mapping": b"}" + (text("net") + b"}") * MANY + b"s" * MANY + b".",
        "a deep key": b"})" + b"\x85" * MANY + b"Ns.",
        "a deep name": b")" + b"\x85" * MANY + text("name") + b"\x93.",
        "a deep function": b")" + b"\x85" * MANY + b")R.",
        "a long name, many times": b"c" + b"a" * MANY + b"\nb\nq\x00" + b"h\x00)R0" * MANY + b"N.",
        "pairs, many times": b"]("
        + b"](K\x01K\x01e" * 9_999
        + b"eq\x000"
        + (ORDERED + b"h\x00\x85R0") * 9_999
        + b"N.",
        "doubled tuples": text("lol") + b"2\x86" * 64 + b"Q.",
        "doubled tuples as a type": b"("
        + text("storage")
        + b")"
        + b"2\x86" * 64
        + text("0")
        + text("cpu")
        + b"NtQ.",
        "doubled tuples as a shape": ORDERED + b")" + b"2\x86" * 64 + b"\x85R.",
        "a lying length": b"\x8e" + b"\xff" * 7 + b"\x7f" + b"abc.",
        "a lying length of text": b"X\xff\xff\xff\x7fabc.",
        "digits": b"I" + b"9" * MANY + b"\n.",
        "nothing": b"",
        "no stop": b"}" * 9,
        "an empty stack": b"0.",
        "no mark": b"}u.",
        "a mark": b"(.",
        "a buffer": b"\x97.",
        "an extension": b"\x82\x01.",
        "an instance": b"(ios\nsystem\n.",
        "an object": b"(cos\nsystem\n" + text("true") + b"o.",
    }.items(),
    ids=lambda item: item[0],
)
def test_hostile_pickles_are_refused_at_once(tmp_path, pickled):
    with refusal("net.pt is not a PyTorch file of tensors"):
        torch_files.read_tensors(zipped_bytes(tmp_path / "net.pt", pickled[1], {"0": SQUARE}))
