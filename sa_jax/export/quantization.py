"""Quantizes kept weights: alternating multi-bit quantization for 1 to 4 bits, affine for 8 bits, none for 32.

Rows with many kept weights have their own scales. Neighbouring rows with few kept weights share scales, which
would otherwise take more bytes than the weights.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.annealing.chain import anneal
from sa_jax.annealing.inputs import check_key
from sa_jax.annealing.landscape import from_energy
from sa_jax.annealing.schedules import geometric_schedule
from sa_jax.export.cleanup import Cleaned, check_finite, predict
from sa_jax.networks.energies import cross_entropy
from sa_jax.networks.mlp import ACTIVATIONS, check_activation
from sa_jax.networks.samples import as_samples
from sa_jax.types import InputError

WIDTHS = (1, 2, 3, 4, 8, 32)
# A row begins a new group if the group before it has this number of weights. Scales are 16 bits.
GROUP_WEIGHTS = 128
# Rounds of alternation; Xu et al. use two for weights.
ROUNDS = 10
# A search for widths makes this number of proposals per layer, on this number of samples. Its first and last
# temperatures are these shares of the spread of energies.
SEARCH_STEPS, SEARCH_SAMPLES, SEARCH_SPREAD = 150, 2_000, (0.3, 0.003)

LOGIT_SCALES = [float(2.0**power) for power in np.arange(-4, 8.1, 0.25)]


class QuantizedLayer(NamedTuple):
    """One layer whose kept weights are codes.

    Attributes:
      mask: bool `[inputs, outputs]`.
      bits: bits per code, one of `WIDTHS`.
      codes: codes of the kept weights, output by output, uint8 `[kept]`; at 32 bits the float32 weights
        themselves.
      scales: float32 `[groups, bits]`, whose signs the bits of a code choose; at 8 bits `[groups, 2]`, the lowest
        weight and the step; at 32 bits `[groups, 0]`. Exactly representable in bfloat16.
      bias: float32 `[outputs]`; below 32 bits exactly representable in bfloat16.
    """

    mask: np.ndarray  # bool [inputs, outputs]
    bits: int
    codes: np.ndarray  # uint8 [kept]
    scales: np.ndarray  # float32 [groups, bits]
    bias: np.ndarray  # float32 [outputs]


class Quantized(NamedTuple):
    """A cleaned network with quantized weights.

    Attributes:
      layers: the layers, in network order.
      activation: activation between layers, one of `mlp.ACTIVATIONS`.
    """

    layers: tuple[QuantizedLayer, ...]
    activation: str


def quantize(cleaned: Cleaned, bits: int | Sequence[int]) -> Quantized:
    """Quantizes the kept weights of each layer.

    Below 8 bits a weight is `sum_i scales[i] * (+1 or -1)`. Scales and codes start greedily; then least-squares
    scales and nearest codes alternate (Xu et al. 2018, Alternating Multi-bit Quantization, algorithm 2). At 8 bits
    a weight is `lowest + step * code`.

    Args:
      cleaned: a network from `clean`.
      bits: bits per weight, of `WIDTHS`; one number for all layers, or one for each.

    Raises:
      InputError: bits that are not in `WIDTHS`, or not one for each layer; or weights that are not finite, before
        or after they are quantized.

    >>> from sa_jax.export import clean
    >>> from sa_jax.networks.mlp import Network
    >>> network = Network((np.array([[0.5], [-0.5], [0.25]], np.float32),), (None,))
    >>> layer = quantize(clean(network, np.ones(3, bool)), 2).layers[0]
    >>> layer.codes.tolist(), layer.scales.tolist()
    ([3, 0, 1], [[0.375, 0.125]])
    """
    widths = list(bits) if isinstance(bits, Sequence | np.ndarray) else [bits] * len(cleaned.kernels)
    if len(widths) != len(cleaned.kernels):
        raise InputError(
            f"bits must be one number or {len(cleaned.kernels)}, one for each layer, not {len(widths)}"
        )
    for width in widths:
        if not isinstance(width, int | np.integer) or isinstance(width, bool) or width not in WIDTHS:
            raise InputError(f"bits must be one of {', '.join(map(str, WIDTHS))}, not {width!r}")
    check_finite(cleaned)
    parts = zip(cleaned.kernels, cleaned.masks, cleaned.biases, map(int, widths), strict=True)
    with np.errstate(over="ignore", invalid="ignore"):  # what bfloat16 cannot hold becomes infinite
        return check(Quantized(tuple(_quantized_layer(*part) for part in parts), cleaned.activation))


def _quantized_layer(kernel: np.ndarray, mask: np.ndarray, bias: np.ndarray, bits: int) -> QuantizedLayer:
    weights = kernel.T[mask.T].astype(np.float32)
    sizes = group_sizes(mask)
    if bits == 32:
        scales = np.zeros((len(sizes), 0), np.float32)
        return QuantizedLayer(mask, bits, weights, scales, np.asarray(bias, np.float32))
    fit = _affine if bits == 8 else _multibit
    parts = np.split(weights.astype(np.float64), np.cumsum(sizes)[:-1])
    codes, scales = zip(*(fit(part, bits) for part in parts), strict=True)
    return QuantizedLayer(mask, bits, np.concatenate(codes), to_bfloat16(np.stack(scales)), to_bfloat16(bias))


def check(quantized: Quantized) -> Quantized:
    """Validates that the arrays of a quantized network fit each other, and returns the network.

    Raises:
      InputError: they do not fit, or hold NaN or infinite values.
    """
    check_activation(quantized.activation)
    if not quantized.layers:
        raise InputError("there are no layers")
    units = quantized.layers[0].mask.shape[0]
    for number, layer in enumerate(quantized.layers):
        if layer.bits not in WIDTHS:
            raise InputError(f"layer {number} has weights of {layer.bits} bits")
        each = {8: 2, 32: 0}.get(layer.bits, layer.bits)
        wanted = {
            "mask": (layer.mask, (units, layer.mask.shape[1]), "bool"),
            "codes": (layer.codes, (int(layer.mask.sum()),), "float32" if layer.bits == 32 else "uint8"),
            "scales": (layer.scales, (len(group_sizes(layer.mask)), each), "float32"),
            "bias": (layer.bias, (layer.mask.shape[1],), "float32"),
        }
        for name, (array, shape, dtype) in wanted.items():
            if array.shape != shape or array.dtype != dtype:
                found = f"{array.dtype}{list(array.shape)}"
                raise InputError(f"the {name} of layer {number} must be {dtype}{list(shape)}, not {found}")
            if not np.isfinite(array).all():
                raise InputError(f"the {name} of layer {number} holds NaN or infinite values")
        if layer.bits < 8 and (layer.codes >> layer.bits).any():
            raise InputError(f"layer {number} has codes of more than {layer.bits} bits")
        if not np.isfinite(_weights(layer)).all():
            raise InputError(f"layer {number} with {layer.bits} bits holds NaN or infinite values: use 32 bits")
        units = layer.mask.shape[1]
    return quantized


def group_sizes(mask: np.ndarray) -> list[int]:
    """Returns the number of kept weights in each group of outputs that share scales.

    Args:
      mask: bool `[inputs, outputs]`.
    """
    sizes = [0]
    for count in mask.sum(0).tolist():
        if sizes[-1] >= GROUP_WEIGHTS:
            sizes.append(0)
        sizes[-1] += count
    return sizes


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounds values of any shape to bfloat16, and returns them as float32."""
    return np.asarray(jnp.asarray(values, jnp.bfloat16).astype(jnp.float32))


def levels(scales: np.ndarray, bits: int) -> np.ndarray:
    """Returns the value of each code in each group, `[groups, 2 ** bits]`, below 32 bits.

    Args:
      scales: scales as in `QuantizedLayer`, `[groups, ...]`.
      bits: bits per code.
    """
    scales = np.asarray(scales, np.float32)
    codes = np.arange(2**bits)
    if bits == 8:
        return scales[:, :1] + scales[:, 1:] * codes.astype(np.float32)
    total = np.zeros((len(scales), len(codes)), np.float32)
    for bit in range(bits):  # in the order in which the C decoder adds them
        total = total + np.where(codes >> bit & 1, scales[:, bit : bit + 1], -scales[:, bit : bit + 1])
    return total


def _weights(layer: QuantizedLayer) -> np.ndarray:
    """The dequantized kept weights, output by output, float32 `[kept]`."""
    if layer.bits == 32:
        return layer.codes
    sizes = group_sizes(layer.mask)
    with np.errstate(over="ignore", invalid="ignore"):
        values = levels(layer.scales, layer.bits)
    return values[np.repeat(np.arange(len(sizes)), sizes), layer.codes]


def _bfloat16_towards(value: float, up: bool) -> float:
    near = float(to_bfloat16(np.asarray(value, np.float32)))
    if near >= value if up else near <= value:
        return near
    bits = np.float32(near).view(np.uint32) >> 16
    outwards = 1 if (near > 0) == up or near == 0 else -1
    return float((np.uint32(int(bits) + outwards) << 16).view(np.float32))


def _affine(weights: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    if not weights.size:
        return np.zeros(0, np.uint8), np.zeros(2)
    top = 2**bits - 1
    # Rounded outwards, so that the error of a weight is at most half a step.
    lowest = _bfloat16_towards(weights.min(), up=False)
    step = _bfloat16_towards((weights.max() - lowest) / top, up=True)
    if step <= 0:
        return np.zeros(len(weights), np.uint8), np.array([lowest, 0.0])
    return np.clip(np.round((weights - lowest) / step), 0, top).astype(np.uint8), np.array([lowest, step])


def _multibit(weights: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    left, scales = weights.copy(), np.zeros(bits)
    if not weights.size:
        return np.zeros(0, np.uint8), scales
    for bit in range(bits):
        scales[bit] = np.abs(left).mean()
        left -= np.where(left >= 0, scales[bit], -scales[bit])
    codes = _nearest(weights, scales)
    for _ in range(ROUNDS):
        signs = np.where(codes[:, None] >> np.arange(bits) & 1, 1.0, -1.0)
        scales = np.linalg.lstsq(signs, weights, rcond=None)[0]
        before, codes = codes, _nearest(weights, scales)
        if (codes == before).all():
            break
    scales = to_bfloat16(scales).astype(np.float64)
    return _nearest(weights, scales), scales


def _nearest(weights: np.ndarray, scales: np.ndarray) -> np.ndarray:
    values = levels(scales[None], len(scales))[0].astype(np.float64)
    order = np.argsort(values, kind="stable")
    between = (values[order][1:] + values[order][:-1]) / 2
    return order[np.searchsorted(between, weights)].astype(np.uint8)


def simulate(quantized: Quantized) -> Cleaned:
    """Dequantizes a network to float32 kernels, with the values that every decoder must compute."""
    kernels = []
    for layer in quantized.layers:
        rows = np.zeros(layer.mask.T.shape, np.float32)
        rows[layer.mask.T] = _weights(layer)
        kernels.append(np.ascontiguousarray(rows.T))
    layers = quantized.layers
    return Cleaned(
        tuple(kernels),
        tuple(layer.mask for layer in layers),
        tuple(layer.bias for layer in layers),
        quantized.activation,
    )


def choose_bits(
    rng_key: jax.Array,
    cleaned: Cleaned,
    inputs: np.ndarray,
    labels: np.ndarray,
    max_bytes: int,
    size: Callable[[QuantizedLayer], int],
    beside: int = 0,
) -> tuple[int, ...]:
    """Chooses the bits of each layer by annealing, for the lowest cross-entropy within a budget of bytes.

    HAQ uses reinforcement learning for this (Wang et al. 2019). The logits are multiplied by the scale that gives
    the network before quantization the lowest cross-entropy (temperature scaling; Guo et al. 2017): pruning
    shrinks the logits, and bits would otherwise be chosen for how much they let the logits grow.

    Args:
      rng_key: a key, `[]`.
      cleaned: a network from `clean`.
      inputs: validation inputs, float `[samples, features]`; the first `SEARCH_SAMPLES` are used.
      labels: their labels, int `[samples]`.
      max_bytes: budget for all layers and `beside`.
      size: returns the bytes that a layer takes.
      beside: bytes beside those of the layers.

    Returns:
      Bits of each layer, of `WIDTHS` below 32.

    Raises:
      InputError: the network takes more bytes even with the fewest bits, or inputs and labels that are not
        numbers.
    """
    check_key(rng_key)
    inputs, labels = as_samples(inputs, labels)
    widths = [width for width in WIDTHS if width < 32]
    tried = [quantize(cleaned, width) for width in widths]
    sizes = jnp.array([[size(layer) for layer in one.layers] for one in tried], jnp.int32)
    layers = range(len(cleaned.kernels))
    least = int(sizes.min(0).sum()) + beside
    if least > max_bytes:
        raise InputError(f"the network takes at least {least:,} bytes, more than max_bytes = {max_bytes:,}")
    networks = [simulate(one) for one in tried]
    kernels = tuple(jnp.stack([network.kernels[layer] for network in networks]) for layer in layers)
    biases = tuple(jnp.stack([network.biases[layer] for network in networks]) for layer in layers)
    logits = predict(cleaned, inputs)
    energy_of = cross_entropy(min(LOGIT_SCALES, key=lambda scale: float(cross_entropy(scale)(logits, labels))))

    def loss(choice, x, y, kernels, biases):
        for layer in layers:
            x = ACTIVATIONS[cleaned.activation](x) if layer else x
            x = x @ kernels[layer][choice[layer]] + biases[layer][choice[layer]][None]
        return energy_of(x, y)

    def energy(choice, *data):
        fits = sizes[choice, jnp.arange(len(layers))].sum() + beside <= max_bytes
        # A choice beyond the budget has an infinite energy, and is thus rejected.
        return jax.lax.cond(fits, lambda: loss(choice, *data), lambda: jnp.float32(jnp.inf))

    def move(rng_key, choice):
        # Changes one layer or two, so that bytes can go from one to the other.
        layer_key, width_key = jax.random.split(rng_key)
        moved = jax.random.randint(layer_key, (2,), 0, len(layers), jnp.int32)
        others = jax.random.randint(width_key, (2,), 0, len(widths), jnp.int32)
        return choice.at[moved].add(others) % len(widths)

    samples = slice(SEARCH_SAMPLES)
    data = jnp.asarray(inputs[samples], jnp.float32), jnp.asarray(labels[samples], jnp.int32), kernels, biases
    start = sizes.argmin(0).astype(jnp.int32)
    uniform = jax.jit(jax.vmap(loss, in_axes=(0, None, None, None, None)))
    spread = uniform(jnp.arange(len(widths))[:, None].repeat(len(layers), 1), *data)
    reach = max(float(spread.max() - spread.min()), 1e-6)
    steps = SEARCH_STEPS * len(layers)
    schedule = geometric_schedule(SEARCH_SPREAD[0] * reach, SEARCH_SPREAD[1] * reach, steps)
    found = jax.jit(anneal, static_argnums=(1, 3, 4))(
        rng_key, from_energy(energy, move), start, schedule, steps, data
    )
    return tuple(widths[int(choice)] for choice in found.best)
