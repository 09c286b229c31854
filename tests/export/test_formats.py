"""Exports: the same outputs with less, and files that compile, load and say the same."""

import contextlib
import itertools
import json
import re
import shutil
import struct
import subprocess
import urllib.parse
import zlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from sa_jax import cli, export
from sa_jax.commands.bench import exports
from sa_jax.export import c, files, packed, quantization
from sa_jax.files import datasets
from sa_jax.networks import mlp
from sa_jax.networks.energies import cross_entropy
from sa_jax.networks.mlp import Network
from sa_jax.types import InputError
from tests.conftest import refusal

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-std=c99", "-pedantic"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def network_of(sizes, seed=0, biases=True):
    random = np.random.default_rng(seed)
    pairs = list(itertools.pairwise(sizes))
    kernels = tuple(random.normal(0, n**-0.5, (n, m)).astype(np.float32) for n, m in pairs)
    return Network(
        kernels, tuple(random.normal(0, 0.3, m).astype(np.float32) if biases else None for _, m in pairs)
    )


def masked_logits(network, mask, x, activation):
    return np.asarray(mlp.forward(mlp.masked(network, mask), x, activation))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("density", [0.0, 0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    ("activation", "biases"), [("relu", True), ("tanh", True), ("gelu", True), ("relu", False)]
)
def test_cleaning_leaves_the_outputs_and_no_dead_unit(density, activation, biases):
    network = network_of((20, 12, 10, 8, 3), biases=biases)
    mask = np.random.default_rng(1).random(network.total) < density
    cleaned = export.clean(network, mask, activation)
    x = np.random.default_rng(2).normal(size=(50, 20)).astype(np.float32)
    close(export.predict(cleaned, x), masked_logits(network, mask, x, activation))
    for layer in range(3):
        assert cleaned.masks[layer].any(0).all() and cleaned.masks[layer + 1].any(1).all()
    assert cleaned.kernels[0].shape[0] == 20 and cleaned.kernels[-1].shape[1] == 3


def built(network, folder, *flags, forms=c.FORMS):
    """The program of the self-test, compiled."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    for name, content in c.files(network, forms).items():
        (folder / name).write_bytes(content)
    sources = [str(folder / name) for name in ("network.c", "test.c")]
    command = ["cc", "-O1", *WARNINGS, *flags, *sources, "-lm", "-o", str(folder / "test")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "test"


@pytest.mark.parametrize(
    ("sizes", "density", "activation", "form"),
    [
        ((600, 30, 10, 3), 0.0, "relu", None),
        ((600, 30, 10, 3), 0.05, "relu", "steps8"),
        ((300, 10, 8, 6, 3), 0.2, "tanh", "bitmask"),
        ((30, 12, 3), 0.99, "gelu", "dense"),
        ((20, 4), 0.5, "relu", None),
    ],
)
def test_c_compiles_without_a_warning_and_gives_the_same(sizes, density, activation, form, tmp_path):
    network = network_of(sizes)
    mask = np.random.default_rng(3).random(network.total) < density
    cleaned = export.clean(network, mask, activation)
    if form:
        assert c.smallest(export.quantize(cleaned, 32).layers[0]).form == form
    done = subprocess.run([built(cleaned, tmp_path, *SANITIZERS)], capture_output=True, text=True)
    assert done.returncode == 0 and "8 samples" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("form", c.FUNCTIONS)
def test_every_form_gives_the_same_with_any_number_of_bits(form, tmp_path, monkeypatch):
    """One layer for each number of bits; of 40 rows, so that there are several groups."""
    network = network_of((700, *[40] * 11, 3))
    random = np.random.default_rng(4)
    density = 1.0 if form == "dense" else 0.08
    mask = np.concatenate(
        [random.random(n * m) < max(density, 0.8 * (number % 2)) for number, (n, m) in enumerate(network.shapes)]
    )
    bits = [width for width in (1, 2, 3, 4, 8, 32) for _ in range(2)]
    quantized = export.quantize(export.clean(network, mask), bits)
    # What has no such form is stored as bits.
    fits = [layer.bits for layer in quantized.layers if c.stored(layer, form) is not None]
    assert len(set(fits)) >= 5
    monkeypatch.setattr(c, "smallest", lambda layer, forms: c.stored(layer, form) or c.stored(layer, "bitmask"))
    done = subprocess.run(
        [built(quantized, tmp_path, *SANITIZERS)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_weight_fails_the_self_test(tmp_path):
    network = network_of((10, 6, 3))
    cleaned = export.clean(network, np.ones(network.total, bool))
    program = built(cleaned, tmp_path)
    assert subprocess.run([program], capture_output=True).returncode == 0
    kernels = (cleaned.kernels[0] * np.float32(1.001), *cleaned.kernels[1:])
    (tmp_path / "network.c").write_bytes(c.files(cleaned._replace(kernels=kernels))["network.c"])
    subprocess.run(["cc", *(str(tmp_path / name) for name in ("network.c", "test.c")), "-lm", "-o", str(program)])
    assert subprocess.run([program], capture_output=True).returncode == 1


def test_a_run_is_exported_by_the_command(finished, tmp_path, capsys):
    x = jax.random.normal(jax.random.key(0), (20, 64))
    with np.load(finished / "masks.npz") as masks, np.load(finished / "weights.npz") as weights:
        names, network = mlp.network_of(weights.load(finished / "weights.npz"))
        mask = np.concatenate([masks[f"{name}/kernel"].ravel() for name in names])
        assert len(weights) == 6
    expected = masked_logits(network, mask, x, "relu")
    for form in ("npz", "safetensors"):
        out = tmp_path / f"network.{form}"
        assert cli.main(["export", str(finished), f"--format={form}", f"--out={out}"]) == 0
        _, loaded = mlp.network_of(weights.load(out))
        close(np.asarray(mlp.forward(loaded, x)), expected)
    assert load_file(tmp_path / "network.safetensors")["layers.0.weight"].shape[1] == 64
    assert cli.main(["export", str(finished), "--format=c", f"--out={tmp_path / 'c'}"]) == 0
    written = {path.name for path in (tmp_path / "c").iterdir()}
    assert written == {"network.h", "network.c", "test.c", "classify.c", "example.pgm"}
    assert "network.c" in capsys.readouterr().out


def test_a_program_classifies_an_image_file(finished, tmp_path):
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    export.export(finished, "c", tmp_path, bits=8)
    program = tmp_path / "classify"
    sources = [str(tmp_path / name) for name in ("network.c", "classify.c")]
    subprocess.run(["cc", "-O1", *WARNINGS, *SANITIZERS, *sources, "-lm", "-o", str(program)], check=True)
    done = subprocess.run([program, tmp_path / "example.pgm"], capture_output=True, text=True, check=True)
    image = datasets.load_dataset("digits").test.inputs[:1]
    np.testing.assert_allclose(
        np.frombuffer((tmp_path / "example.pgm").read_bytes()[-64:], np.uint8) / 255, image[0], atol=0.003
    )
    cleaned, _ = export.read_run(finished)
    logits = export.predict(export.simulate(export.quantize(cleaned, 8)), image)[0]
    probability = np.exp(logits.max()) / np.exp(logits).sum()
    assert done.stdout.startswith(f"class {logits.argmax()}, probability ")
    assert float(done.stdout.split()[-1]) == pytest.approx(probability, abs=0.02)
    (tmp_path / "cut.pgm").write_bytes((tmp_path / "example.pgm").read_bytes()[:-1])
    for name in ("cut.pgm", "network.c", "missing.pgm"):
        done = subprocess.run([program, tmp_path / name], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_bits_are_chosen_for_a_budget(finished, tmp_path):
    for form in ("packed", "c_packed", "c"):
        export.export(finished, form, tmp_path / f"{form}_8", bits=8)
    export.export(finished, "packed", tmp_path / "all_1", bits=1)
    most = ((tmp_path / "packed_8").stat().st_size + (tmp_path / "all_1").stat().st_size) // 2
    (path,) = export.export(finished, "packed", tmp_path / "fits", max_bytes=most)
    assert path.stat().st_size <= most
    widths = {layer.bits for layer in export.read_packed(path).layers}
    assert widths != {1} and widths != {8}
    with refusal("more than max_bytes = 50"):
        export.export(finished, "packed", tmp_path / "out", max_bytes=50)
    with refusal("bits must be of 1, 2, 3, 4, 8, 32, not 5"):
        export.export(finished, "packed", tmp_path / "out", bits=5)
    with refusal("max_bytes is for the formats c, c_packed, packed, not 'npz'"):
        export.export(finished, "npz", tmp_path / "out", max_bytes=5_000)
    with refusal("is a folder: format 'packed' is one file"):
        export.export(finished, "packed", tmp_path, overwrite=True)
    with refusal("is no folder: format 'c' is several files"):
        export.export(finished, "c", path, overwrite=True)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_a_run_whose_layers_are_dead_is_exported_too(tmp_path):
    network = network_of((64, 16, 8, 10))
    cleaned = export.clean(network, np.zeros(network.total, bool))
    for bits in quantization.WIDTHS:
        quantized = export.quantize(cleaned, bits)
        assert_equal(packed.unpack(packed.pack(quantized)), quantized)
        for forms in (c.FORMS, c.PACKED_FORMS):
            assert set(c.files(quantized, forms)) == {"network.h", "network.c", "test.c"}


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


def test_what_cannot_be_exported_is_refused(finished, tmp_path):
    with refusal("format must be one of c, c_packed, packed, npz", "'onyx'"):
        export.export(finished, "onyx", tmp_path / "out")
    with refusal("holds no finished run"):
        export.export(tmp_path, "c", tmp_path / "out")
    (tmp_path / "checkpoints").mkdir()
    with refusal("holds an unfinished run: finish it first"):
        export.export(tmp_path, "c", tmp_path / "out")
    (tmp_path / "there.npz").write_bytes(b"mine")
    with refusal("there.npz exists"):
        export.export(finished, "npz", tmp_path / "there.npz")
    assert (tmp_path / "there.npz").read_bytes() == b"mine"
    with refusal("the mask must have the shape [60]"):
        export.clean(network_of((10, 6)), np.ones(5, bool))
    network = network_of((4, 3))
    network.kernels[0][0, 0] = np.nan
    with refusal("NaN or infinite"):
        export.clean(network, np.ones(12, bool))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.3, 0.38, 0.5, 0.62, 0.9, 1.0])
def test_masks_are_packed_near_their_information_bound(density):
    mask = np.random.default_rng(5).random((784, 300)) < density
    coded = packed.rice(mask)
    np.testing.assert_array_equal(packed.unrice(coded, 784, 300), mask)
    assert 8 * len(coded.content) <= 1.05 * packed.entropy_bits(mask) + 40
    assert packed.entropy_bits(np.arange(6).reshape(2, 3) < 2) == pytest.approx(np.log2(15))


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


@pytest.fixture(scope="module")
def mixed():
    """A network of several widths."""
    network = network_of((60, 40, 30, 20, 3))
    mask = np.random.default_rng(9).random(network.total) < 0.3
    return export.quantize(export.clean(network, mask, "tanh"), [3, 8, 32, 1])


def assert_equal(one, other):
    assert one.activation == other.activation and len(one.layers) == len(other.layers)
    for first, second in zip(one.layers, other.layers, strict=True):
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)


def test_packed_files_are_read_back(mixed, tmp_path):
    path = tmp_path / "network.sajx"
    path.write_bytes(packed.pack(mixed))
    assert_equal(export.read_packed(path), mixed)
    (content,) = files.safetensors_packed(mixed).values()
    path.write_bytes(content)
    assert_equal(files.read_safetensors_packed(path), mixed)
    with refusal("network.sajx: it is no packed network"):
        export.read_packed(path)
    path.write_bytes(content[:-1])
    with refusal("network.sajx is no packed network"):
        files.read_safetensors_packed(path)
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


def test_every_form_is_compiled_timed_and_gives_the_same_predictions(finished, tmp_path, capsys):
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    assert cli.main(["bench", "export", str(finished), "--quick", f"--out={tmp_path}"]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {(row["form"], row["bits"]) for row in rows} >= {("smallest", bits) for bits in (32, 8, 4, 2)}
    accuracy = json.loads((finished / "result.json").read_text())["test_accuracy"]
    for row in rows:
        if row["engine"] != "onnxruntime" or row["bits"] == 32:
            assert row["other_predictions"] == 0 and row["largest_relative_error"] < 1e-5
        assert row["microseconds"] > 0 and row["bytes"] > 100
        if row["bits"] == 32 and row["density"] < 1:
            assert row["test_accuracy"] == pytest.approx(accuracy)
    by_bits = {row["bits"]: row["packed_bytes"] for row in rows if row["form"] == "smallest"}
    assert by_bits[32] > by_bits[8] > by_bits[4] > by_bits[2]
    page = (tmp_path / "report.html").read_text()
    assert "Does it pay?" in page and page.count("<svg ") == 2
    saved = re.search(r'download="programs.csv" href="data:text/csv;charset=utf-8,([^"]*)"', page)
    assert saved and len(urllib.parse.unquote(saved[1]).splitlines()) == 1 + len(rows)
    assert (tmp_path / "results.md").read_text() in capsys.readouterr().out
    with refusal("holds no finished run"):
        exports.measure([tmp_path])
