"""Exports: the same outputs with less, and files that compile, load and say the same."""

import itertools
import shutil
import subprocess

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from sa_jax import cli, export, models, runner
from sa_jax.export import c
from sa_jax.models import Network
from sa_jax.settings import RunConfig
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
    return np.asarray(models.forward(models.masked(network, mask), x, activation))


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


def built(cleaned, folder, *flags):
    """The program of the self-test, compiled."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    for name, content in c.files(cleaned).items():
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
        assert c.smallest(cleaned.kernels[0], cleaned.masks[0]).form == form
    done = subprocess.run([built(cleaned, tmp_path, *SANITIZERS)], capture_output=True, text=True)
    assert done.returncode == 0 and "8 samples" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("form", c.FORMS)
def test_every_form_gives_the_same(form, tmp_path, monkeypatch):
    monkeypatch.setattr(c, "smallest", lambda kernel, mask: c.stored(kernel, mask, form))
    network = network_of((700, 9, 5, 2))
    mask = np.random.default_rng(4).random(network.total) < 0.02
    done = subprocess.run(
        [built(export.clean(network, mask), tmp_path, *SANITIZERS)], capture_output=True, text=True
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = RunConfig(
        weights="random", hidden=(12, 8), density=0.1, num_steps=1_000, num_samples=100, num_chains=1
    )
    workdir = tmp_path_factory.mktemp("run")
    runner.run(config, workdir)
    return workdir


def test_a_run_is_exported_by_the_command(finished, tmp_path, capsys):
    x = jax.random.normal(jax.random.key(0), (20, 64))
    with np.load(finished / "masks.npz") as masks, np.load(finished / "weights.npz") as weights:
        names, network = models.network_of(models.load_weights(finished / "weights.npz"))
        mask = np.concatenate([masks[f"{name}/kernel"].ravel() for name in names])
        assert len(weights) == 6
    expected = masked_logits(network, mask, x, "relu")
    for form in ("npz", "safetensors"):
        out = tmp_path / f"network.{form}"
        assert cli.main(["export", str(finished), f"--format={form}", f"--out={out}"]) == 0
        _, loaded = models.network_of(models.load_weights(out))
        close(np.asarray(models.forward(loaded, x)), expected)
    assert load_file(tmp_path / "network.safetensors")["layers.0.weight"].shape[1] == 64
    assert cli.main(["export", str(finished), "--format=c", f"--out={tmp_path / 'c'}"]) == 0
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"network.h", "network.c", "test.c"}
    assert "network.c" in capsys.readouterr().out


def test_what_cannot_be_exported_is_refused(finished, tmp_path):
    with refusal("format must be one of c, npz, safetensors", "'onyx'"):
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
