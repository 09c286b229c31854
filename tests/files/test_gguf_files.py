"""GGUF files: types, metadata, streaming, and whatever is damaged."""

import random
import struct
import sys
import time
import tracemalloc

import numpy as np
import pytest

from sa_jax.files import gguf_files
from tests.conftest import refusal
from tests.files.gguf_writer import write

gguf = pytest.importorskip("gguf", reason="needs gguf")
KINDS = gguf.GGMLQuantizationType
VALUES = {
    "llama.rope.freq_base": 1e5,
    "llama.attention.head_count": 4,
    "general.is_small": True,
    "general.languages": ["en", "zürich"],
    "some.counts": [1, -2, 3],
    "some.numbers": [0.5, 0.25],
    "some.flags": [True, False],
}


def blocks_of(kind, shape, rng):
    """The bytes of a tensor: quantized where gguf can, random blocks with finite scales where it cannot."""
    array = rng.normal(size=shape).astype(np.float32)
    if not kind.endswith("_K"):
        return np.ascontiguousarray(gguf.quants.quantize(array, KINDS[kind]))
    block, length = gguf.GGML_QUANT_SIZES[KINDS[kind]]
    made = rng.integers(0, 256, (shape[0], shape[1] // block, length), np.uint8)
    scales = rng.normal(size=(*made.shape[:2], 2)).astype(np.float16).view(np.uint8)
    if kind == "Q6_K":
        made[..., -2:] = scales[..., :2]
    else:
        made[..., :4] = scales
    return made.reshape(shape[0], -1)


def header(num_values=0, num_tensors=0, version=3, rest=b""):
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_values) + rest


def text(content):
    return struct.pack("<Q", len(content)) + content


def tensor(name=b"a", shape=(32,), kind=0, offset=0):
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + axes + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize("kind", [*gguf_files.FLOATS, *gguf_files.BLOCKS])
def test_each_type_is_read_as_gguf_itself_reads_it(tmp_path, kind):
    content = blocks_of(kind, (6, 512), np.random.default_rng(0))
    path = write(
        tmp_path / "model.gguf", {"first": (kind, content), "second": ("F32", np.ones(3, np.float32))}, VALUES
    )
    tensors = gguf_files.read(path).tensors
    array = tensors["first"].read()
    assert (tensors["first"].kind, array.dtype, array.flags.writeable) == (kind, np.float32, True)
    np.testing.assert_array_equal(array, gguf.quants.dequantize(content.view(content.dtype), KINDS[kind]))
    assert array.shape == tensors["first"].shape == (6, 512)
    assert np.isfinite(array).all() and array.std() > 0
    np.testing.assert_array_equal(tensors["second"].read(), np.ones(3))


def test_shapes_are_row_major_of_up_to_four_axes(tmp_path):
    shapes = [(3,), (2, 3), (4, 2, 3), (2, 4, 2, 3)]
    arrays = {f"a{len(shape)}": np.random.default_rng(0).normal(size=shape).astype(np.float32) for shape in shapes}
    given = {name: ("F32", array) for name, array in arrays.items()}
    path = write(tmp_path / "model.gguf", given, VALUES, alignment=64)
    tensors = gguf_files.read(path).tensors
    assert list(tensors) == list(arrays) and all(one.place % 64 == 0 for one in tensors.values())
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name].read(), array)
    path.write_bytes(header(0, 1, rest=tensor(shape=())).ljust(64, b"\0") + np.float32(7).tobytes())
    assert gguf_files.read(path).tensors["a"].read() == 7


def test_metadata_is_plain_and_decoded_on_access(tmp_path, monkeypatch):
    words = [f"word {i}" for i in range(5_000)]
    path = write(tmp_path / "model.gguf", {}, VALUES | {"tokenizer.ggml.tokens": words})
    decoded = []
    value = gguf_files._value
    monkeypatch.setattr(gguf_files, "_value", lambda cursor, kind: decoded.append(kind) or value(cursor, kind))
    metadata = gguf_files.read(path).metadata
    assert set(metadata) == {"general.architecture", "tokenizer.ggml.tokens", *VALUES} and not decoded
    found = dict(metadata)
    assert len(decoded) == len(found) and metadata.get("no.such") is None
    assert found == VALUES | {"general.architecture": "llama", "tokenizer.ggml.tokens": words}
    assert type(found["some.counts"][0]) is int and type(found["general.is_small"]) is bool


def test_a_model_is_streamed(tmp_path):
    """The whole takes no more memory than a few of its tensors."""
    one = np.ones((256, 1024), np.float32)
    path = write(tmp_path / "model.gguf", {f"blk.{i}": ("F32", i * one) for i in range(24)}, VALUES)
    tensors = gguf_files.read(path).tensors
    tracemalloc.start()
    try:
        assert [tensor.read()[3, 7] for tensor in tensors.values()] == list(range(24))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * one.nbytes


def test_other_types_are_refused_by_name(tmp_path):
    path = tmp_path / "model.gguf"
    for kind, name in ((24, "I8"), (11, "Q3_K"), (20, "IQ4_NL"), (4, "4"), (999, "999")):
        path.write_bytes(header(num_tensors=1, rest=tensor(kind=kind)) + bytes(4_000))
        with refusal(f"tensor 'a' is of type {name}, which is not read: quantize the model as F32, F16"):
            gguf_files.read(path)


LIES = [
    ("it ends too early", header()[:20]),
    ("it does not begin with GGUF", b"GGML" + header()[4:]),
    ("big-endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0)),
    ("of version 1, and only 2 and 3", header(version=1)),
    ("of version 4", header(version=4)),
    ("it ends too early", header(num_values=2**64 - 1)),
    ("it ends too early", header(num_tensors=2**63)),
    ("a name in it has 18,446,744,073,709,551,615 bytes", header(1, rest=b"\xff" * 8)),
    ("two values are called 'k'", header(2, rest=2 * (text(b"k") + struct.pack("<IB", 0, 1)))),
    ("value of the unknown type 99", header(1, rest=text(b"k") + struct.pack("<I", 99))),
    ("value of the unknown type 9", header(1, rest=text(b"k") + struct.pack("<IIQ", 9, 9, 1))),
    ("general.alignment is 12", header(1, rest=text(b"general.alignment") + struct.pack("<II", 4, 12))),
    ("general.alignment is 'x'", header(1, rest=text(b"general.alignment") + struct.pack("<I", 8) + text(b"x"))),
    ("two tensors are called 'a'", header(0, 2, rest=2 * tensor())),
    ("'a' has 5 axes", header(0, 1, rest=tensor(shape=(2,) * 5))),
    ("'a' has 4294967295 axes", header(0, 1, rest=text(b"a") + b"\xff" * 4)),
    ("'a' is of the shape [0, 5]", header(0, 1, rest=tensor(shape=(5, 0)))),
    ("whose rows are no blocks of Q4_K", header(0, 1, rest=tensor(shape=(32, 8), kind=12))),
    ("'a' does not lie where a tensor may begin", header(0, 1, rest=tensor(offset=7))),
    ("'b' does not lie where", header(0, 2, rest=tensor() + tensor(b"b", offset=32)) + bytes(400)),
    ("'a' needs 128 bytes, and the file ends before", header(0, 1, rest=tensor()) + bytes(100)),
    (
        "'a' needs 5,316,911,983,139,663,491,615,228,241,121,378,304 bytes",
        header(0, 1, rest=tensor(shape=(2**60, 2**60))),
    ),
    ("the file ends before", header(0, 1, rest=tensor(offset=2**63))),
    ("codec can't decode", header(1, rest=text(b"\xff") + struct.pack("<IB", 0, 1))),
]
LISTS = [
    text(b"k") + struct.pack("<IIQ", 9, kind, count) for kind in (0, 8, 12) for count in (2**40, 2**61, 2**64 - 1)
]


@pytest.mark.parametrize(("problem", "content"), LIES, ids=range(len(LIES)))
def test_what_lies_is_refused(tmp_path, problem, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with refusal(f"{path} is damaged or not a GGUF file: ", problem):
        gguf_files.read(path)


def test_counts_of_more_than_the_file_holds_take_no_memory(tmp_path):
    path = tmp_path / "model.gguf"
    gguf_files._gguf()
    tracemalloc.start()
    try:
        for rest in LISTS:
            path.write_bytes(header(1, rest=rest) + bytes(10_000))
            with refusal("it ends too early"):
                gguf_files.read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_files_that_cannot_be_read_or_have_changed_are_named(tmp_path, monkeypatch):
    with refusal(f"{tmp_path / 'no.gguf'} cannot be read: No such file"):
        gguf_files.read(tmp_path / "no.gguf")
    with refusal("cannot be read: Is a directory"):
        gguf_files.read(tmp_path)
    path = write(tmp_path / "model.gguf", {"a": ("F32", np.ones(4_000, np.float32))}, VALUES)
    model = gguf_files.read(path)
    path.write_bytes(path.read_bytes()[:1_000])
    with refusal("model.gguf is damaged or not a GGUF file: it ends too early"):
        model.tensors["a"].read()
    path.write_bytes(bytes(30))
    with refusal("model.gguf is damaged or not a GGUF file"):
        _ = model.metadata["general.languages"]
    monkeypatch.setitem(sys.modules, "gguf", None)
    with refusal(".gguf files need gguf: pip install 'sa_jax[gguf]'"):
        gguf_files.read(path)


def test_damaged_files_are_refused_or_read(tmp_path):
    """300 files, cut or with changed bytes: one line, or the values of what still lies where it did."""
    rng, draw = np.random.default_rng(0), random.Random(0)
    tensors = {
        f"blk.{i}": (kind, blocks_of(kind, (2, 256), rng)) for i, kind in enumerate(("F16", "Q4_1", "Q6_K"))
    }
    whole = write(tmp_path / "whole.gguf", tensors, VALUES | {"tokenizer.ggml.tokens": ["a", "b"] * 20})
    content, model = whole.read_bytes(), gguf_files.read(whole)
    good = {name: (one, one.read()) for name, one in model.tensors.items()}
    start = min(one.place for one in model.tensors.values())
    refused, begin = 0, time.monotonic()
    path = tmp_path / "bad.gguf"
    for turn in range(300):
        bad = bytearray(content[: draw.randrange(len(content))] if turn % 3 == 0 else content)
        for _ in range(draw.randrange(1, 4) if turn % 3 else 0):
            bad[draw.randrange(start)] = draw.choice((0, 1, 8, 127, 128, 255, draw.randrange(256)))
        path.write_bytes(bad)
        try:
            read = gguf_files.read(path)
            arrays = {name: (one, one.read()) for name, one in read.tensors.items()}
            dict(read.metadata)
        except gguf_files.InputError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1
            continue
        for name, (one, array) in arrays.items():
            assert array.shape == one.shape and array.dtype == np.float32
            if name in good and one._replace(path=whole) == good[name][0]:
                np.testing.assert_array_equal(array, good[name][1])
    assert 100 <= refused < 300 and time.monotonic() - begin < 60
