"""Few bits per weight: near the best codes, valid parts, and widths chosen for a budget."""

import itertools

import jax
import numpy as np
import pytest

from sa_jax import InputError, export
from sa_jax.export import arrays, c, graphs, packed, quantization
from sa_jax.networks.energies import cross_entropy
from sa_jax.networks.mlp import Network
from tests.conftest import refusal
from tests.export.networks import network_of


def test_parts_that_do_not_belong_together_are_refused(mixed):
    first, *others = mixed.layers
    for changes, parts in (
        ({"bits": 5}, "weights of 5 bits"),
        ({"bits": 2, "scales": first.scales[:, :2]}, "codes of more than 2 bits"),
        ({"scales": np.full_like(first.scales, np.nan)}, "NaN or infinite"),
        ({"codes": first.codes[:-1]}, "the codes of layer 0 must be"),
        ({"bias": first.bias[1:]}, "the bias of layer 0 must be"),
        ({"mask": first.mask[:, 1:]}, "of layer 0 must be"),
    ):
        with refusal(parts):
            quantization.check(mixed._replace(layers=(type(first)(**(first._asdict() | changes)), *others)))
    with refusal("activation must be one of"):
        quantization.check(mixed._replace(activation="sine"))
    with refusal("there are no layers"):
        quantization.check(mixed._replace(layers=()))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_few_bits_are_as_near_as_any_code_and_better_than_one_step(bits):
    weights = np.random.default_rng(6).normal(size=(300, 1)).astype(np.float32)
    cleaned = export.clean(Network((weights,), (None,)), np.ones(300, bool))
    layer = export.quantize(cleaned, bits).layers[0]
    values = quantization.levels(layer.scales, bits)[0]
    found = values[layer.codes]
    nearest = values[np.abs(weights - values).argmin(1)]
    np.testing.assert_allclose(np.abs(found - weights[:, 0]), np.abs(nearest - weights[:, 0]), atol=1e-6)
    # The least mean squared error of 2, 4, 8 and 16 free values for a normal distribution (Max 1960, table I).
    best = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}[bits]
    assert ((found - weights[:, 0]) ** 2).mean() / weights.var() < 1.6 * best


def test_eight_bits_are_half_a_step_off_at_most_and_32_are_exact():
    weights = np.random.default_rng(7).normal(size=(200, 3)).astype(np.float32)
    cleaned = export.clean(Network((weights,), (None,)), np.random.default_rng(8).random(600) < 0.7)
    layer = export.quantize(cleaned, 8).layers[0]
    off = np.abs(export.simulate(export.Quantized((layer,), "relu")).kernels[0] - cleaned.kernels[0])
    assert off.max() <= 0.5001 * layer.scales[:, 1].max() < 0.51 * np.ptp(weights) / 255 * 2
    assert len(layer.scales) == len(quantization.group_sizes(layer.mask)) > 1
    np.testing.assert_array_equal(export.simulate(export.quantize(cleaned, 32)).kernels[0], cleaned.kernels[0])


@pytest.mark.slow
def test_widths_are_annealed_to_those_of_least_loss_within_the_budget():
    network = network_of((12, 10, 8, 3))
    cleaned = export.clean(network, np.ones(network.total, bool))
    random = np.random.default_rng(11)
    x = random.normal(size=(200, 12)).astype(np.float32)
    y = export.predict(cleaned, x).argmax(-1).astype(np.int32)

    def size(layer):
        return len(packed.layer_bytes(layer))

    logits = export.predict(cleaned, x)
    scale = min(quantization.LOGIT_SCALES, key=lambda scale: float(cross_entropy(scale)(logits, y)))

    def loss(bits):
        logits = export.predict(export.simulate(export.quantize(cleaned, bits)), x)
        return float(cross_entropy(scale)(logits, y))

    choices = [
        (bits, sum(map(size, export.quantize(cleaned, bits).layers)))
        for bits in itertools.product((1, 2, 3, 4, 8), repeat=3)
    ]
    losses = {bits: loss(bits) for bits, _ in choices}
    best = 0
    for budget in (120, 150, 170, 190, 220):
        possible = sorted(losses[bits] for bits, taken in choices if taken <= budget)
        assert 2 < len(possible) < 125
        found = export.choose_bits(jax.random.key(0), cleaned, x, y, budget, size)
        assert sum(map(size, export.quantize(cleaned, found).layers)) <= budget
        assert losses[found] <= possible[1] + 1e-6  # of all, the best or the next
        best += losses[found] <= possible[0] + 1e-6
    assert best >= 4
    with refusal("at least", "more than max_bytes = 10"):
        export.choose_bits(jax.random.key(0), cleaned, x, y, 10, size)


def test_rows_of_zeros_and_of_one_value_have_finite_scales():
    weights = np.zeros((40, 3), np.float32)
    weights[:, 1] = 0.5
    cleaned = export.clean(Network((weights,), (None,)), np.ones(120, bool))
    for bits in quantization.WIDTHS:
        found = export.simulate(export.quantize(cleaned, bits)).kernels[0]
        np.testing.assert_allclose(found[:, 0] if bits > 1 else 0, 0, atol=1e-7)
        assert np.isfinite(found).all()
    np.testing.assert_allclose(export.simulate(export.quantize(cleaned, 8)).kernels[0], weights, atol=0.5 / 510)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_what_bfloat16_cannot_hold_is_refused(bits):
    weights = np.float32([[3.4e38], [-3.4e38], [1.0]])
    cleaned = export.clean(Network((weights,), (None,)), np.ones(3, bool))
    assert np.isfinite(export.simulate(export.quantize(cleaned, 32)).kernels[0]).all()
    try:
        found = export.simulate(export.quantize(cleaned, bits))
    except InputError as error:
        assert "holds NaN or infinite values" in str(error)
    else:
        assert bits in (1, 2, 4) and np.isfinite(found.kernels[0]).all()
    cleaned = export.clean(Network((np.ones((3, 1), np.float32),), (np.float32([3.4e38]),)), np.ones(3, bool))
    with refusal("the bias of layer 0 holds NaN or infinite values"):
        export.quantize(cleaned, bits)


def test_bits_and_weights_of_another_kind_are_refused():
    cleaned = export.clean(network_of((4, 3)), np.ones(12, bool))
    for bits in (5, 4.0, True, None, "4", [8.0], np.array([8.0])):
        with refusal("bits must be one", "not "):
            export.quantize(cleaned, bits)
    for bits in (np.int64(4), [4], np.array([4])):
        assert export.quantize(cleaned, bits).layers[0].bits == 4
    broken = cleaned._replace(kernels=(cleaned.kernels[0] * np.nan,))
    with refusal("the network's weights hold NaN or infinite values"):
        export.quantize(broken, 4)
    with refusal("rng_key must be one key, such as jax.random.key(0), not int"):
        export.choose_bits(0, cleaned, np.ones((5, 4)), np.zeros(5, int), 1_000, lambda layer: 1)
    with refusal("labels must be whole numbers, not float64"):
        export.choose_bits(jax.random.key(0), cleaned, np.ones((5, 4)), np.zeros(5), 1_000, lambda layer: 1)


NOT_FINITE = {
    "npz": arrays.npz,
    "safetensors": arrays.safetensors,
    "onnx": graphs.onnx,
    "stablehlo": graphs.stablehlo,
    "c": c.files,
    "packed": packed.files,
}


@pytest.mark.parametrize("form", NOT_FINITE)
@pytest.mark.parametrize("part", ["kernels", "biases"])
def test_no_format_writes_what_is_not_finite(form, part):
    cleaned = export.clean(network_of((4, 3)), np.ones(12, bool))
    for value in (np.nan, np.inf, -np.inf):
        broken = cleaned._replace(**{part: (np.full_like(getattr(cleaned, part)[0], value),)})
        with refusal("the network's weights hold NaN or infinite values"):
            NOT_FINITE[form](broken)


def test_no_format_of_codes_writes_what_is_not_finite(mixed):
    layer = mixed.layers[0]
    broken = mixed._replace(layers=(layer._replace(bias=layer.bias * np.nan), *mixed.layers[1:]))
    for write in (arrays.safetensors_packed, packed.pack, packed.files, c.files):
        with refusal("NaN or infinite values"):
            write(broken)


def test_c_refuses_numbers_that_are_not_finite():
    cleaned = export.clean(network_of((4, 3)), np.ones(12, bool))
    with refusal("the C code would hold NaN or infinite values: the network's weights are too large"):
        c.files(cleaned._replace(kernels=(np.full((4, 3), 3e38, np.float32),)))  # in the logits of the self-test
    for inputs in (c.Inputs(np.nan, 1.0, None), c.Inputs(0.0, np.inf, None)):
        with refusal("the C code would hold NaN or infinite values"):
            c.files(cleaned, inputs=inputs)
