"""Arrays in files, in every format and of every type."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from sa_jax import files
from sa_jax.files import array_files
from tests.conftest import refusal

KERNEL = np.arange(-3, 3).reshape(3, 2)
BEYOND_NUMPY = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
KEPT = {f"{name}.weight": KERNEL.astype(getattr(jnp, name)) for name in BEYOND_NUMPY}
KEPT |= {
    f"{name}.weight": KERNEL.astype(name) for name in ("float16", "float32", "float64", "int8", "int64", "bool")
}
KEPT |= {
    "big.weight": KERNEL.astype(">f4"),
    "turned.weight": KERNEL.T,
    "every.weight": KERNEL[::2],
    "one": np.ones(()),
}
KEPT |= {"none.weight": np.ones((0, 3), np.float32), "unsigned.weight": np.arange(3, dtype=np.uint16)}


@pytest.mark.parametrize("suffix", array_files.WRITTEN)
def test_every_type_shape_and_memory_layout_is_read_back(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(array_files.array_bytes(path, KEPT))
    found = array_files.read_arrays(path)
    assert found.keys() == KEPT.keys()
    for name, array in KEPT.items():
        by_numpy = suffix == ".npz" and name.removesuffix(".weight") in BEYOND_NUMPY
        wanted = np.dtype(np.float32) if by_numpy else array.dtype
        assert found[name].dtype.newbyteorder("=") == wanted.newbyteorder("="), name
        np.testing.assert_array_equal(found[name].astype(np.float64), array.astype(np.float64), strict=True)


@pytest.mark.parametrize("name", BEYOND_NUMPY)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_types_that_numpy_lacks_are_pruned_in_their_type(tmp_path, name, suffix):
    source = {"fc.weight": KERNEL.astype(getattr(jnp, name))}
    (tmp_path / f"net{suffix}").write_bytes(array_files.array_bytes(tmp_path / f"net{suffix}", source))
    np.testing.assert_array_equal(files.load(tmp_path / f"net{suffix}")["fc"]["kernel"], KERNEL.T)
    files.write_pruned(tmp_path / f"net{suffix}", {"fc/kernel": KERNEL.T > 0}, tmp_path / f"out{suffix}")
    pruned = array_files.read_arrays(tmp_path / f"out{suffix}")["fc.weight"]
    assert pruned.dtype == getattr(jnp, name)
    np.testing.assert_array_equal(pruned.astype(np.float32), np.maximum(KERNEL, 0))


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [(".pt", "a PyTorch file"), (".safetensors", "a .safetensors file"), (".npz", "a .npz file")],
)
def test_types_that_a_format_lacks_are_named(tmp_path, suffix, kind):
    array = np.array([None]) if suffix == ".npz" else np.ones(2, jnp.int4)
    with refusal(f"array 'x' is of type {array.dtype.name}, which {kind} cannot hold"):
        array_files.array_bytes(tmp_path / f"net{suffix}", {"x": array})


def safetensors_file(path, kind, size):
    header = json.dumps({"x": {"dtype": kind, "shape": [2, 2], "data_offsets": [0, size]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    return path


def test_types_that_are_not_read_are_named(tmp_path):
    with refusal("net.safetensors: array 'x' is of type F4, which is not read"):
        files.load(safetensors_file(tmp_path / "net.safetensors", "F4", 2))
    with refusal("net.safetensors: an array is of type F3, which is not read"):
        files.load(safetensors_file(tmp_path / "net.safetensors", "F3", 2))
    with refusal("net.safetensors is damaged or not a .safetensors file"):
        files.load(safetensors_file(tmp_path / "net.safetensors", "F32", 4))
    np.savez(tmp_path / "net.npz", **{"fc.weight": np.ones((2, 2), jnp.bfloat16)})
    with refusal("net.npz: array 'fc.weight' is of type |V2, plain bytes", "save float32, or a .safetensors file"):
        files.load(tmp_path / "net.npz")


def test_the_text_beside_the_arrays_of_safetensors_is_kept(tmp_path):
    source, out = tmp_path / "net.safetensors", tmp_path / "out.safetensors"
    safetensors.numpy.save_file({"fc.weight": np.ones((2, 2), np.float32)}, source, {"format": "pt", "by": "é"})
    files.write_pruned(source, {"fc/kernel": np.eye(2, dtype=bool)}, out)
    with safetensors.safe_open(out, "numpy") as file:
        assert file.metadata() == {"format": "pt", "by": "é"}
    assert array_files.read_metadata(out) == {"format": "pt", "by": "é"}
    files.write_pruned(array_files.read_arrays(source), {"fc/kernel": np.eye(2, dtype=bool)}, out)
    assert array_files.read_metadata(out) == {}
    assert array_files.read_metadata(tmp_path / "net.npz") == {}


def test_numbers_that_are_not_finite_are_counted():
    array_files.check_numbers("x", np.ones(3, jnp.int4))
    array_files.check_numbers("x", np.zeros(3, bool))
    for dtype in (">f4", jnp.bfloat16, jnp.float8_e5m2, np.complex64):
        array_files.check_numbers("x", np.zeros(3, dtype))
        with refusal("net.pt: array 'x' holds NaN or infinite values, 2 of 3"):
            array_files.check_numbers("x", np.array([np.nan, np.inf, 1]).astype(dtype), "net.pt: ")


def test_gguf_is_named_whatever_the_suffix(tmp_path):
    for suffix in array_files.SUFFIXES:
        (tmp_path / f"net{suffix}").write_bytes(b"GGUF" + bytes(20))
        with refusal("is a GGUF file: convert it with sa_jax.files.gguf_models.write_hugging_face"):
            array_files.read_arrays(tmp_path / f"net{suffix}")
        with refusal("is a GGUF file: convert it with sa_jax.files.gguf_models.write_hugging_face"):
            files.load(tmp_path / f"net{suffix}")
