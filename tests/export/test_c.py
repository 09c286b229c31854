"""C that compiles without a warning and gives the same outputs."""

import shutil
import subprocess

import numpy as np
import pytest

from sa_jax import export
from sa_jax.export import c
from sa_jax.files import datasets
from tests.export.networks import network_of

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-std=c99", "-pedantic"]


SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


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


@pytest.mark.slow
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
