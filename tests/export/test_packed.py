"""Packed files: near the information bound, read back, and refused if damaged."""

import contextlib
import struct
import zlib

import numpy as np
import pytest

from sa_jax import export
from sa_jax.export import c, packed, quantization
from sa_jax.types import InputError
from tests.conftest import refusal
from tests.export.networks import assert_equal, network_of


@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.3, 0.38, 0.5, 0.62, 0.9, 1.0])
def test_masks_are_packed_near_their_information_bound(density):
    mask = np.random.default_rng(5).random((784, 300)) < density
    coded = packed.rice(mask)
    np.testing.assert_array_equal(packed.unrice(coded, 784, 300), mask)
    assert 8 * len(coded.content) <= 1.05 * packed.entropy_bits(mask) + 40
    assert packed.entropy_bits(np.arange(6).reshape(2, 3) < 2) == pytest.approx(np.log2(15))


def test_a_run_whose_layers_are_dead_is_exported_too(tmp_path):
    network = network_of((64, 16, 8, 10))
    cleaned = export.clean(network, np.zeros(network.total, bool))
    for bits in quantization.WIDTHS:
        quantized = export.quantize(cleaned, bits)
        assert_equal(packed.unpack(packed.pack(quantized)), quantized)
        for forms in (c.FORMS, c.PACKED_FORMS):
            assert set(c.files(quantized, forms)) == {"network.h", "network.c", "test.c"}


def test_packed_files_are_read_back(mixed, tmp_path):
    path = tmp_path / "network.sajx"
    path.write_bytes(packed.pack(mixed))
    assert_equal(export.read_packed(path), mixed)
    path.write_bytes(b"PK" * 20)
    with refusal("network.sajx: it is not a packed network"):
        export.read_packed(path)
    with refusal("cannot be read"):
        export.read_packed(tmp_path)


def test_damaged_packed_files_are_refused(mixed):
    content = packed.pack(mixed)
    random = np.random.default_rng(10)
    for _ in range(300):
        broken = bytearray(content[: random.integers(12, len(content) + 1)])
        broken[random.integers(5, len(broken))] ^= int(random.integers(1, 256))
        with refusal("it is damaged"):
            packed.unpack(bytes(broken))
        # With a checksum that is right the reader has to look at every number itself.
        body = bytes(broken[:-4])
        with contextlib.suppress(InputError):
            packed.unpack(body + struct.pack("<I", zlib.crc32(body)))
