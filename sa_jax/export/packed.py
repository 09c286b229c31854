"""Packs a pruned network into one small file: masks near their information bound, weights in few bits.

Layout, little-endian; a number is a LEB128 varint unless stated otherwise:

- `SAJX`, a byte with the version, a byte with the length of the activation's name, the name
- the number of layers, then the numbers of units: inputs first, outputs last
- for each layer: a byte with its bits per weight; a byte with the Rice shift, plus 128 if the pruned branches are
  coded; the number of bytes of the mask; the mask; the codes, or at 32 bits float32 weights; the scales, bfloat16;
  the biases, bfloat16, or at 32 bits float32
- 4 bytes CRC-32 (zlib) of everything before

A mask is flattened output by output. The gaps between its kept branches, or between its pruned branches if these
are fewer, are Rice coded (Golomb 1966; Rice & Plaunt 1971): the quotient in zeros, a one, the remainder, lowest
bit first. The last gap reaches to the end of the mask.
"""

import itertools
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sa_jax.export.cleanup import Cleaned
from sa_jax.export.quantization import WIDTHS, Quantized, QuantizedLayer, check, group_sizes, quantize
from sa_jax.types import InputError

MAGIC, VERSION = b"SAJX", 1
# A file with a larger layer is refused before memory is allocated for it.
MAX_BRANCHES = 2**27


class RiceCoded(NamedTuple):
    """A Rice-coded mask.

    Attributes:
      content: the code, padded with zeros to whole bytes.
      shift: number of bits of a remainder.
      of_pruned: whether the gaps are between pruned branches.
    """

    content: bytes
    shift: int
    of_pruned: bool


def rice(mask: np.ndarray) -> RiceCoded:
    """Rice-codes a mask, bool `[inputs, outputs]`, within a few per cent of `log2 C(n, k)` bits.

    >>> mask = np.random.default_rng(0).random((100, 10)) < 0.02
    >>> 8 * len(rice(mask).content), round(entropy_bits(mask))
    (168, 160)
    """
    flat = mask.T.ravel()
    of_pruned = bool(2 * flat.sum() > flat.size)
    gaps = np.diff(np.flatnonzero(flat ^ of_pruned), prepend=-1, append=flat.size) - 1
    shift = min(range(28), key=lambda bits: int((gaps >> bits).sum()) + bits * len(gaps))
    quotients = gaps >> shift
    ends = np.cumsum(quotients + 1 + shift)
    code = np.zeros(ends[-1], bool)
    code[ends - shift - 1] = True
    for bit in range(shift):
        code[ends - shift + bit] = gaps >> bit & 1
    return RiceCoded(np.packbits(code, bitorder="little").tobytes(), shift, of_pruned)


def unrice(coded: RiceCoded, inputs: int, outputs: int) -> np.ndarray:
    """Decodes a mask of `rice`, bool `[inputs, outputs]`.

    Raises:
      InputError: the code is not that of a mask of this shape.
    """
    bits = np.unpackbits(np.frombuffer(coded.content, np.uint8), bitorder="little")
    ones = np.flatnonzero(bits)
    flat, total, branch, at = np.full(inputs * outputs, coded.of_pruned), inputs * outputs, -1, 0
    while branch < total:
        number = int(np.searchsorted(ones, at))
        end = int(ones[number]) + 1 if number < len(ones) else len(bits) + 1
        if end + coded.shift > len(bits):
            raise InputError("a mask ends too early")
        remainder = int(np.dot(bits[end : end + coded.shift], 1 << np.arange(coded.shift)))
        branch += 1 + (end - 1 - at << coded.shift) + remainder
        at = end + coded.shift
        if branch < total:
            flat[branch] = not coded.of_pruned
    if branch > total or len(bits) - at > 7 or bits[at:].any():
        raise InputError("a mask is longer than its layer")
    return np.ascontiguousarray(flat.reshape(outputs, inputs).T)


def entropy_bits(mask: np.ndarray) -> float:
    """Returns the information bound `log2 C(n, k)` in bits of a mask of any shape with `k` of `n` branches."""
    total, num_kept = mask.size, int(mask.sum())
    log_ways = math.lgamma(total + 1) - math.lgamma(num_kept + 1) - math.lgamma(total - num_kept + 1)
    return log_ways / math.log(2)


def pack_codes(codes: np.ndarray, bits: int) -> bytes:
    """Packs codes, uint8 `[kept]`, to bits, lowest bit first; at 32 bits they are float32 weights."""
    if bits == 32:
        return codes.astype("<f4").tobytes()
    each = codes[:, None] >> np.arange(bits) & 1
    return np.packbits(each.astype(bool).ravel(), bitorder="little").tobytes()


def unpack_codes(packed: bytes, num_kept: int, bits: int) -> np.ndarray:
    """Unpacks the codes of `pack_codes`, `[num_kept]`.

    Raises:
      InputError: the bytes have another length.
    """
    if len(packed) != (4 * num_kept if bits == 32 else -(-num_kept * bits // 8)):
        raise InputError(f"{len(packed)} bytes cannot be {num_kept} codes of {bits} bits")
    if bits == 32:
        return np.frombuffer(packed, "<f4").astype(np.float32)
    each = np.unpackbits(np.frombuffer(packed, np.uint8), count=num_kept * bits, bitorder="little")
    return (each.reshape(num_kept, bits) << np.arange(bits)).sum(1).astype(np.uint8)


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Returns the upper 16 bits of float32 values of any shape, in order, uint16 `[values]`."""
    return (values.astype(np.float32).ravel().view(np.uint32) >> 16).astype("<u2")


def bfloat16_bytes(values: np.ndarray) -> bytes:
    """Returns `bfloat16_bits` of values of any shape as little-endian bytes."""
    return bfloat16_bits(values).tobytes()


def layer_bytes(layer: QuantizedLayer) -> bytes:
    """Returns the bytes of one layer in the file."""
    coded = rice(layer.mask)
    head = bytes([layer.bits, coded.shift | coded.of_pruned << 7]) + _varint(len(coded.content))
    bias = layer.bias.astype("<f4").tobytes() if layer.bits == 32 else bfloat16_bytes(layer.bias)
    codes = pack_codes(layer.codes, layer.bits)
    return head + coded.content + codes + bfloat16_bytes(layer.scales) + bias


def pack(quantized: Quantized) -> bytes:
    """Returns the bytes of the whole file.

    Raises:
      InputError: arrays that do not fit each other, or are not finite.
    """
    check(quantized)
    name = quantized.activation.encode()
    units = [quantized.layers[0].mask.shape[0], *(layer.mask.shape[1] for layer in quantized.layers)]
    head = MAGIC + bytes([VERSION, len(name)]) + name + _varint(len(units) - 1)
    content = head + b"".join(map(_varint, units)) + b"".join(map(layer_bytes, quantized.layers))
    return content + struct.pack("<I", zlib.crc32(content))


def unpack(content: bytes) -> Quantized:
    """Unpacks the bytes of `pack`.

    Raises:
      InputError: they are damaged, or not of `pack`.
    """
    if content[:4] != MAGIC or len(content) < 12:
        raise InputError("it is not a packed network of sa_jax")
    if content[4] != VERSION:
        raise InputError(f"it has version {content[4]}, but only version {VERSION} can be read")
    content, crc = content[:-4], content[-4:]
    if struct.pack("<I", zlib.crc32(content)) != crc:
        raise InputError("it is damaged: its CRC-32 is wrong")
    at = 6

    def take(size: int) -> bytes:
        nonlocal at
        if size > len(content) - at:
            raise InputError("it ends too early")
        at += size
        return content[at - size : at]

    def number() -> int:
        value = shift = 0
        while shift < 35:
            (byte,) = take(1)
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise InputError("it holds a number that is too large")

    activation = take(content[5]).decode("ascii", "replace")
    units = [number() for _ in range(min(number(), len(content)) + 1)]
    layers = []
    for inputs, outputs in itertools.pairwise(units):
        # Each output takes 2 bytes or more for its bias.
        if inputs * outputs > MAX_BRANCHES or 2 * outputs > len(content):
            raise InputError(f"it claims a layer of {inputs:,} by {outputs:,} units")
        bits, form = take(2)
        if bits not in WIDTHS:
            raise InputError(f"it claims weights of {bits} bits")
        if form & 96:
            raise InputError(f"it claims a mask of form {form}")
        mask = unrice(RiceCoded(take(number()), form & 31, form > 127), inputs, outputs)
        num_kept, groups = int(mask.sum()), len(group_sizes(mask))
        packed = take(4 * num_kept if bits == 32 else -(-num_kept * bits // 8))
        codes = unpack_codes(packed, num_kept, bits)
        each = {8: 2, 32: 0}.get(bits, bits)
        scales = _bfloat16(take(2 * each * groups)).reshape(groups, each)
        bias = (
            np.frombuffer(take(4 * outputs), "<f4").astype(np.float32)
            if bits == 32
            else _bfloat16(take(2 * outputs))
        )
        layers.append(QuantizedLayer(mask, bits, codes, scales, bias))
    if at != len(content) or not layers:
        raise InputError("it is longer than its layers")
    return check(Quantized(tuple(layers), activation))


def read_packed(path: Path) -> Quantized:
    """Reads a packed file; `simulate` turns the result into float32 kernels.

    Raises:
      InputError: the file cannot be read, is damaged, or is not a packed network.
    """
    try:
        return unpack(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def files(network: Cleaned | Quantized) -> Mapping[str, bytes]:
    """Returns the file `network.sajx`."""
    return {"network.sajx": pack(quantize(network, 32) if isinstance(network, Cleaned) else network)}


def _bfloat16(content: bytes) -> np.ndarray:
    return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
