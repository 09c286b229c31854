"""The layers of a whole model: files in, a pruned model out, resumed, sequential, and what is refused."""

import json
import urllib.parse

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sa_jax.commands.layers import host
from sa_jax.commands.layers.host import prune_model_files
from sa_jax.commands.layers.settings import LayersConfig, parse
from sa_jax.files import gguf_files, gguf_models, workdirs
from sa_jax.files.npz import npz_bytes, read_npz
from sa_jax.pruning.patches import Convolution
from sa_jax.pruning.refitting import Refitted
from tests.conftest import refusal
from tests.scripts import llama_files

SIZES = (16, 12, 8)


def forward(params, x, record):
    record("first", x)
    hidden = jax.nn.relu(x @ params["first.weight"].T)
    record("second", hidden)
    record("twin", hidden)
    return hidden @ params["second/kernel"] + hidden @ params["twin.weight"].T


def inputs_of(seed=0, samples=64):
    keys = jax.random.split(jax.random.key(seed), 2)
    mix = jax.random.normal(keys[0], (SIZES[0], SIZES[0]))
    return np.asarray(jax.random.normal(keys[1], (samples, SIZES[0])) @ mix)


@pytest.fixture
def model(tmp_path):
    """A model of three layers in both layouts and other types, its inputs, and its layers' Gram matrices."""
    rng = np.random.default_rng(0)
    arrays = {
        "first.weight": rng.normal(size=SIZES[1::-1]).astype(np.float16),
        "second/kernel": rng.normal(size=SIZES[1:]),
        "twin.weight": rng.normal(size=SIZES[:0:-1]).astype(np.float32),
        "norm.bias": np.ones(3, np.float32),
    }
    save_file(arrays, tmp_path / "model.safetensors")
    x = inputs_of()
    save_file({"x": x}, tmp_path / "inputs.safetensors")
    hidden = np.maximum(x @ arrays["first.weight"].T.astype(np.float32), 0)
    grams = {"first": x.T @ x, "second": hidden.T @ hidden, "twin.weight": hidden.T @ hidden}
    save_file(grams, tmp_path / "grams.safetensors")
    return tmp_path, arrays


def config_of(folder, **changes):
    settings = {"weights": str(folder / "model.safetensors"), "grams": str(folder / "grams.safetensors")}
    if "forward" in changes:
        settings |= {"grams": None, "inputs": str(folder / "inputs.safetensors")}
    return LayersConfig(**settings | changes)


@pytest.mark.slow
def test_prunes_every_layer_in_its_own_layout_and_type(model):
    folder, arrays = model
    rows = prune_model_files(config_of(folder), folder / "out", "layers.pattern = 'unit:0.5'")
    pruned, masks = (load_file(folder / "out" / f"{name}.safetensors") for name in ("pruned", "masks"))
    assert [row["layer"] for row in rows] == ["first", "second", "twin"] and set(pruned) == set(arrays)
    np.testing.assert_array_equal(pruned["norm.bias"], arrays["norm.bias"])
    for name in ("first.weight", "second/kernel", "twin.weight"):
        assert pruned[name].dtype == arrays[name].dtype and masks[name].dtype == bool
        np.testing.assert_array_equal(pruned[name], np.where(masks[name], arrays[name], 0))  # to the last bit
        axis = 0 if name.endswith("kernel") else 1
        assert (masks[name].sum(axis) == masks[name].shape[axis] // 2).all()
    for row in rows:
        assert row["kept"] * 2 == row["total"]
        assert 0 < row["annealed_error"] <= row["wanda_error"] and row["refit_error"] is None
    for name in ("layers.csv", "report.html", "operative.gin"):
        assert (folder / "out" / name).stat().st_size
    page = (folder / "out/report.html").read_text()
    assert "mathdefault" not in page and "10^" not in page  # a tick that no one chose
    assert urllib.parse.quote((folder / "out/layers.csv").read_text(), safe=",-.") in page


@pytest.mark.slow
def test_errors_are_those_of_the_layers_outputs(model):
    folder, arrays = model
    rows = prune_model_files(config_of(folder, refit=True), folder / "out")
    pruned = load_file(folder / "out/pruned.safetensors")["first.weight"].astype(np.float32)
    x, weight = inputs_of(), arrays["first.weight"].astype(np.float32)
    whole, change = x @ weight.T, x @ (pruned - weight).T
    assert rows[0]["refit_error"] == pytest.approx((change**2).sum() / (whole**2).sum(), rel=0.02)
    assert rows[0]["refit_error"] < rows[0]["annealed_error"]


@pytest.mark.slow
def test_resumes_where_it_stopped_and_prunes_again_what_changed(model):
    folder, _ = model
    rows = prune_model_files(config_of(folder), folder / "out")
    files = sorted((folder / "out/layers").iterdir())
    before = [path.stat().st_mtime_ns for path in files]
    files[1].write_bytes(files[1].read_bytes()[:50])  # a damaged one is pruned again
    again = prune_model_files(config_of(folder), folder / "out")
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in again] == [
        {k: v for k, v in row.items() if k != "seconds"} for row in rows
    ]
    after = [path.stat().st_mtime_ns for path in files]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]
    other = prune_model_files(config_of(folder, pattern="2:4"), folder / "out")
    assert all(new != old for new, old in zip((p.stat().st_mtime_ns for p in files), after, strict=True))
    assert other[0]["pattern"] == "2:4"


def test_a_layer_is_pruned_alike_whichever_others_are(model):
    folder, _ = model
    for workdir, chosen in (("all", None), ("one", ["twin"])):
        prune_model_files(config_of(folder, layers=chosen), folder / workdir)
    masks = [load_file(folder / workdir / "masks.safetensors")["twin.weight"] for workdir in ("all", "one")]
    np.testing.assert_array_equal(*masks)


def test_a_function_that_shows_inputs_serves_as_well_as_gram_matrices(model):
    folder, _ = model
    place = f"{forward.__module__}:forward"
    by_grams = prune_model_files(config_of(folder), folder / "grams")
    by_forward = prune_model_files(config_of(folder, forward=place, batch_size=16), folder / "forward")
    for one, other in zip(by_grams, by_forward, strict=True):
        assert one["annealed_error"] == pytest.approx(other["annealed_error"], rel=0.2)
        assert (one["samples"], other["samples"]) == (None, 64)


@pytest.mark.slow
def test_sequentially_a_layer_sees_its_pruned_predecessors(model):
    folder, arrays = model
    config = config_of(folder, forward=f"{forward.__module__}:forward", sequential=True, pattern="unit:0.25")
    rows = prune_model_files(config, folder / "out")
    pruned = load_file(folder / "out/pruned.safetensors")
    hidden = np.maximum(inputs_of() @ pruned["first.weight"].astype(np.float32).T, 0)
    dense = np.maximum(inputs_of() @ arrays["first.weight"].astype(np.float32).T, 0)
    for name, row in zip(("second/kernel", "twin.weight"), rows[1:], strict=True):
        before, after = (array if name == "second/kernel" else array.T for array in (arrays[name], pruned[name]))
        lost = ((hidden @ after - dense @ before) ** 2).sum() / ((dense @ before) ** 2).sum()
        assert row["annealed_error"] == pytest.approx(lost, rel=1e-3)


@pytest.mark.slow
def test_densities_by_error_keep_the_budget(model):
    folder, _ = model
    rows = prune_model_files(config_of(folder, allocation="by_error"), folder / "out")
    assert len({row["pattern"] for row in rows}) > 1
    kept, total = (sum(row[name] for row in rows) for name in ("kept", "total"))
    assert kept / total == pytest.approx(0.5, abs=0.05)
    for row in rows:
        density = parse(row["pattern"]).density
        assert row["pattern"] == f"unit:{density}" and row["kept"] == row["outputs"] * round(
            density * row["inputs"]
        )


@pytest.mark.slow
def test_a_number_is_the_share_of_the_layer(model):
    folder, _ = model
    by_number, by_name = (
        prune_model_files(config_of(folder, pattern=pattern), folder / f"out{place}")
        for place, pattern in enumerate((0.3, "layer:0.3"))
    )
    for one, other in zip(by_number, by_name, strict=True):
        assert one["kept"] == other["kept"] == round(0.3 * one["total"])
        assert one["annealed_error"] == other["annealed_error"] and one["pattern"] == "layer:0.3"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"layers": ["frist"]}, ["'frist'", "did you mean first?"]),
        ({"pattern": "3:5"}, ["first", "3:5 needs a multiple of 5 inputs, not 16"]),
        ({"pattern": "unit:0.01"}, ["first: density 0.01 keeps none of the 16"]),
        ({"layers": ["norm"]}, ["the weight of 'norm' cannot be found"]),
        ({"forward": "no_such_module:forward"}, ["no_such_module", "module:function"]),
        ({"forward": f"{__name__}:SIZES"}, ["is not a function"]),
        ({"weights": "lacking.safetensors"}, ["lacking.safetensors"]),
    ],
)
def test_refuses_before_anything_is_written(model, changes, parts):
    folder, _ = model
    with refusal(*parts):
        prune_model_files(config_of(folder, **changes), folder / "out")
    assert not (folder / "out").exists()


def test_refuses_gram_matrices_that_are_none(model):
    folder, _ = model
    grams = load_file(folder / "grams.safetensors")
    for change, part in (
        (np.triu(np.ones((16, 16), np.float32)), "symmetric"),
        (np.full((16, 16), np.nan, np.float32), "not finite"),
        (np.eye(15, dtype=np.float32), "must be [16, 16]"),
    ):
        save_file(grams | {"first": change}, folder / "grams.safetensors")
        with refusal("first", part):
            prune_model_files(config_of(folder), folder / "out")
        assert not (folder / "out/pruned.safetensors").exists()


def test_refuses_a_file_whose_header_lies(model):
    folder, _ = model
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[:8] = (2**40).to_bytes(8, "little")
    (folder / "model.safetensors").write_bytes(content)
    with refusal("model.safetensors is damaged"):
        prune_model_files(config_of(folder), folder / "out")


def test_tells_of_inputs_that_are_linear_combinations_of_others(model):
    folder, _ = model
    grams = load_file(folder / "grams.safetensors")
    few = inputs_of(samples=10)
    save_file(grams | {"first": few.T @ few}, folder / "grams.safetensors")
    messages = []
    prune_model_files(config_of(folder), folder / "out", on_message=messages.append)
    assert any(
        "first: in these samples 6 of 16 inputs are linear combinations of others" in message
        for message in messages
    )


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_a_layer_without_inputs_keeps_its_weights_and_is_named(model, damping):
    """An expert that is never called, and inputs most of which are 0: nothing that is written is not finite."""
    folder, arrays = model
    grams = load_file(folder / "grams.safetensors")
    few = inputs_of() * (np.arange(SIZES[0]) < 3)
    dead = {"first": few.T @ few, "second": np.zeros_like(grams["second"])}
    save_file(
        {name: gram.astype(np.float32) for name, gram in (grams | dead).items()}, folder / "grams.safetensors"
    )
    messages, said = [], "second: 8 of 8 outputs were not refitted, because their inputs are 0 or too few"
    config = config_of(folder, refit=True, damping=damping)
    rows = prune_model_files(config, folder / "out", on_message=messages.append)
    assert any(message.startswith(said) for message in messages)
    pruned, masks = (load_file(folder / "out" / f"{name}.safetensors") for name in ("pruned", "masks"))
    assert all(np.isfinite(array).all() for array in pruned.values())
    np.testing.assert_array_equal(
        pruned["second/kernel"], np.where(masks["second/kernel"], arrays["second/kernel"], 0).astype(np.float32)
    )
    assert (pruned["twin.weight"] != np.where(masks["twin.weight"], arrays["twin.weight"], 0)).any()
    assert rows[1]["refit_error"] == rows[1]["annealed_error"] == 0 and rows[0]["refit_error"] < 1e-3
    assert "nan" not in (folder / "out/layers.csv").read_text()
    page = (folder / "out/report.html").read_text()
    assert "Not refitted, because their inputs are 0 or too few: " in page and "second (8 outputs)" in page


def test_weights_that_the_type_of_the_file_cannot_hold_are_not_written(model, monkeypatch):
    folder, _ = model
    monkeypatch.setattr(
        host, "refit_layer", lambda weight, *ignored: Refitted(weight * 1e6, jnp.ones(len(weight), bool))
    )
    with refusal("pruned.safetensors, first.weight would hold NaN or infinite values: it was not written"):
        prune_model_files(config_of(folder, refit=True, layers=["first"]), folder / "out")
    assert not (folder / "out/pruned.safetensors").exists()


def test_results_of_an_earlier_version_that_are_not_finite_are_made_again(model):
    folder, _ = model
    config = config_of(folder, refit=True, layers=["first"])
    prune_model_files(config, folder / "out")
    before = load_file(folder / "out/pruned.safetensors")["first.weight"]
    path = folder / "out/layers/first.npz"
    saved = read_npz(path)
    saved["weight"][0, 0] = np.nan
    path.write_bytes(npz_bytes(saved))
    prune_model_files(config, folder / "out")
    np.testing.assert_array_equal(load_file(folder / "out/pruned.safetensors")["first.weight"], before)


@pytest.mark.slow
def test_big_endian_arrays_and_metadata_are_kept(tmp_path):
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(4, 6)).astype(">f4"), rng.normal(size=(50, 6))
    np.savez(tmp_path / "model.npz", **{"fc.weight": weight, "other": np.arange(3, dtype=">i8")})
    save_file({"fc.weight": weight.astype("<f4")}, tmp_path / "model.safetensors", {"format": "pt"})
    np.savez(tmp_path / "grams.npz", fc=(x.T @ x).astype(">f8"))
    for kind, metadata in (("npz", None), ("safetensors", {"format": "pt"})):
        config = LayersConfig(str(tmp_path / f"model.{kind}"), str(tmp_path / "grams.npz"))
        prune_model_files(config, tmp_path / kind)
        with safe_open(tmp_path / kind / "pruned.safetensors", "numpy") as pruned:
            found = pruned.get_tensor("fc.weight")
            assert pruned.metadata() == metadata
        np.testing.assert_array_equal(found, np.where(found, weight, 0))
        assert (found != 0).sum() == 12
    np.testing.assert_array_equal(load_file(tmp_path / "npz/pruned.safetensors")["other"], np.arange(3))


def test_files_of_another_kind_are_named_by_their_setting(model):
    folder, _ = model
    (folder / "model.txt").write_text("")
    for name, changes in (
        ("weights", {}),
        ("grams", {}),
        ("inputs", {"forward": f"{__name__}:forward"}),
    ):
        with refusal(f"layers.{name} must be a file .npz, .safetensors, ", f"not {folder}/model.txt"):
            config = config_of(folder, **changes | {name: str(folder / "model.txt")})
            prune_model_files(config, folder / "out")


def test_its_folder_has_one_writer_and_its_paths_may_begin_with_a_tilde(model, monkeypatch):
    folder, _ = model
    monkeypatch.setenv("HOME", str(folder))
    config = LayersConfig("~/model.safetensors", "~/grams.safetensors", layers=["twin"])
    with workdirs.only_one(folder), refusal("another command is writing to"):
        prune_model_files(config, folder)
    assert len(prune_model_files(config, folder / "out")) == 1
    assert not (folder / "out/.lock").exists()


@pytest.fixture
def llama(tmp_path):
    """A Llama in a GGUF file, and the Gram matrix of a layer's inputs."""
    pytest.importorskip("gguf", reason="needs gguf")
    path = llama_files.write_llama(tmp_path / "model.gguf", llama_files.tensors())
    x = np.random.default_rng(0).normal(size=(50, llama_files.WIDTH)).astype(np.float32)
    save_file({"model.layers.1.self_attn.q_proj": x.T @ x}, tmp_path / "grams.safetensors")
    return path


@pytest.mark.slow
def test_a_gguf_file_is_pruned_in_the_names_and_layout_of_transformers(llama):
    folder = llama.parent
    rows = prune_model_files(LayersConfig(str(llama), str(folder / "grams.safetensors")), folder / "out")
    content = gguf_files.read(llama)
    dense = dict(gguf_models.hugging_face_arrays(content))
    with safe_open(folder / "out/pruned.safetensors", "numpy") as pruned:
        assert set(pruned.keys()) == set(dense) and pruned.metadata() == {"format": "pt"}
        for name, array in dense.items():
            found = pruned.get_tensor(name)
            np.testing.assert_array_equal(found, np.where(found, array, 0))
            assert (found == 0).sum() == (found.size / 2 if f"{rows[0]['layer']}.weight" == name else 0)
    assert json.loads((folder / "out/config.json").read_text()) == gguf_models.hugging_face_config(content)


def test_a_gguf_file_of_another_architecture_is_refused(llama):
    with refusal("model.gguf is a GGUF file"):  # which holds no Gram matrices
        prune_model_files(LayersConfig(str(llama), str(llama)), llama.parent / "out")
    llama_files.write_llama(llama, llama_files.tensors(), "qwen2")
    with refusal("models of the architecture 'qwen2' are not converted, only llama"):
        prune_model_files(LayersConfig(str(llama), str(llama.parent / "grams.safetensors")), llama.parent / "out")
    assert not (llama.parent / "out").exists()


IMAGES = (12, 6, 6, 4)


def convolve(x, kernel, groups):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=numbers, feature_group_count=groups
    )


def forward_of_images(params, x, record):
    record("torch", x, None, Convolution((3, 3)))
    hidden = jax.nn.relu(convolve(x, params["torch.weight"].transpose(2, 3, 1, 0), 1))
    record("depthwise", hidden, None, Convolution((3, 3), groups=8))
    hidden = jax.nn.relu(convolve(hidden, params["depthwise/kernel"], 8))
    flat = hidden.reshape(len(x), -1)
    record("head", flat)
    return flat @ params["head.weight"].T


@pytest.fixture
def images(tmp_path):
    """A network with a convolution in PyTorch's layout, a depthwise one in Flax's, and a dense layer."""
    rng = np.random.default_rng(0)
    arrays = {
        "torch.weight": rng.normal(size=(8, 4, 3, 3)).astype(np.float32),
        "depthwise/kernel": rng.normal(size=(3, 3, 1, 8)).astype(np.float32),
        "head.weight": rng.normal(size=(3, 32)).astype(np.float32),
    }
    save_file(arrays, tmp_path / "model.safetensors")
    save_file({"x": rng.normal(size=IMAGES).astype(np.float32)}, tmp_path / "inputs.safetensors")
    return tmp_path, arrays


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"sequential": True}, {"refit": True}], ids=str)
def test_convolutions_are_pruned_in_their_layouts(images, changes):
    folder, arrays = images
    config = config_of(folder, forward=f"{__name__}:forward_of_images", pattern=f"unit:{1 / 3}", **changes)
    rows = prune_model_files(config, folder / "out", "")
    pruned, masks = (load_file(folder / "out" / f"{name}.safetensors") for name in ("pruned", "masks"))
    assert [(row["layer"], row["outputs"], row["inputs"]) for row in rows] == [
        ("torch", 8, 36), ("depthwise", 8, 9), ("head", 3, 32),
    ]  # fmt: skip
    assert (masks["torch.weight"].sum((1, 2, 3)) == 12).all()
    assert (masks["depthwise/kernel"].sum((0, 1, 2)) == 3).all()
    for name, array in arrays.items():
        assert pruned[name].shape == masks[name].shape == array.shape
        assert not pruned[name][~masks[name]].any()
        if "refit" not in changes:
            np.testing.assert_array_equal(pruned[name], np.where(masks[name], array, 0))
    for row in rows:
        assert 0 < row["annealed_error"] <= row["magnitude_error"]
        if "refit" in changes:
            assert row["refit_error"] < row["annealed_error"]
    again = prune_model_files(config, folder / "out", "")  # all layers are read, none is pruned
    assert [row["kept"] for row in again] == [row["kept"] for row in rows]


def test_slices_and_channels_of_convolutions(images):
    folder, _ = images
    for pattern, axes, kept in (("kernels:0.5", (2, 3), {0, 9}), ("channels:0.5", (0, 2, 3), {0, 72})):
        config = config_of(folder, forward=f"{__name__}:forward_of_images", pattern=pattern, layers=["torch"])
        (row,) = prune_model_files(config, folder / pattern[:4], "")
        mask = load_file(folder / pattern[:4] / "masks.safetensors")["torch.weight"]
        assert set(mask.sum(axes).ravel().tolist()) == kept and row["pattern"] == pattern


def test_a_convolution_in_the_wrong_layout_is_refused_with_both_named(images):
    folder, arrays = images
    arrays["torch.weight"] = np.zeros((3, 3, 4, 8), np.float32)
    save_file(arrays, folder / "model.safetensors")
    save_file({"torch": np.eye(36, dtype=np.float32)}, folder / "grams.safetensors")
    with refusal(
        "torch: the Gram matrix must be",
        "LAYER.weight must be [outputs, channels, *sizes]",
        "[*sizes, channels, outputs]",
    ):
        prune_model_files(config_of(folder), folder / "out", "")


def test_densities_by_error_are_not_for_groups(images):
    folder, _ = images
    config = config_of(folder, forward=f"{__name__}:forward_of_images", allocation="by_error")
    with refusal("'by_error' is not for convolutions with groups, such as depthwise"):
        prune_model_files(config, folder / "out", "")
