"""Weights from other frameworks, and masks and pruned weights back there."""

import json
import zipfile

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from sa_jax.files import weights
from sa_jax.files.npz import read_npz
from sa_jax.networks import mlp
from tests.conftest import refusal
from tests.files.torch_pickles import of_torch
from tests.files.weight_files import BIASES, KERNELS, STATE_DICT, WIDTHS, drawn, keras_file, same


def masks_for(params):
    numbers = np.random.default_rng(1)
    return {name: {"kernel": numbers.random(parts["kernel"].shape) < 0.5} for name, parts in params.items()}


def logits(params, masks, x):
    return mlp.apply(params, masks, x)


PARAMS_OF_DICT = weights.load(STATE_DICT)
MASKS = masks_for(PARAMS_OF_DICT)
FLAT = {f"{name}/kernel": mask["kernel"] for name, mask in MASKS.items()}
AS_STORED = {f"{name}.weight": np.ascontiguousarray(mask["kernel"].T) for name, mask in MASKS.items()}
MOVED = jax.tree.map(lambda leaf: leaf + 1, PARAMS_OF_DICT)


def assert_same_arrays(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], strict=True)


@pytest.mark.parametrize("form", ["pt", "pth", "safetensors", "npz", "weights.h5", "keras"])
def test_every_file_gives_the_same_network_and_takes_its_masks_back(tmp_path, form):
    path = tmp_path / f"net.{form}"
    if form in ("weights.h5", "keras"):
        path = keras_file(tmp_path / ("net.keras" if form == "keras" else "net.any"))
    elif form == "safetensors":
        safetensors.numpy.save_file({name: np.ascontiguousarray(a) for name, a in STATE_DICT.items()}, path)
    elif form == "npz":
        np.savez(path, **STATE_DICT)
    else:
        of_torch(path, STATE_DICT)
    params = weights.load(path)
    same(params)
    masks, x = masks_for(params), jax.random.normal(jax.random.key(0), (7, WIDTHS[0]))
    suffixes = [".safetensors", ".npz", ".pt", ".pth", ".ckpt", ".bin"] + (
        [".weights.h5"] if pytest.importorskip("h5py") else []
    )
    suffixes += [".keras"] if form == "keras" else []
    for suffix in suffixes:
        weights.write_pruned(path, masks, tmp_path / f"pruned{suffix}")
        pruned = weights.load(tmp_path / f"pruned{suffix}")
        _, network = mlp.network_of(pruned)
        np.testing.assert_array_equal(mlp.forward(network, x), logits(params, masks, x))
        if suffix != ".weights.h5":
            assert weights.read_arrays(tmp_path / f"pruned{suffix}").keys() == weights.read_arrays(path).keys()
    if form == "keras":
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "pruned.keras") as pruned:
            assert pruned.read("config.json") == archive.read("config.json")
    with refusal(
        "pruned.txt: pruned weights are written to .safetensors, .npz, .pt, .pth, .ckpt, .bin or .weights.h5"
    ):
        weights.write_pruned(path, masks, tmp_path / "pruned.txt")


class NnxNetwork(nnx.Module):
    def __init__(self, rngs):
        self.entry = nnx.Linear(6, 5, rngs=rngs)
        self.dropout = nnx.Dropout(0.0, rngs=rngs)
        self.body = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.body(self.dropout(nnx.relu(self.entry(x))))


def flax_params():
    variables = mlp.MLP([5, 3]).init(jax.random.key(0), jnp.ones((1, 6)))
    return variables, lambda variables, x: mlp.MLP([5, 3]).apply(variables, x)


def flax_beside_other_collections():
    variables, apply = flax_params()
    return {**variables, "cache": {"kernel": jnp.ones(3)}}, lambda given, x: apply({"params": given["params"]}, x)


def frozen():
    variables, apply = flax_params()
    return flax.core.freeze(variables["params"]), lambda params, x: apply({"params": params}, x)


def nnx_module():
    return NnxNetwork(nnx.Rngs(0)), lambda module, x: module(x)


def nnx_state():
    graph, state = nnx.split(NnxNetwork(nnx.Rngs(0)))
    return state, lambda state, x: nnx.merge(graph, state)(x)


def equinox_module():
    equinox = pytest.importorskip("equinox", reason="needs Equinox")
    return equinox.nn.MLP(6, 3, 5, 2, key=jax.random.key(0)), lambda module, x: jax.vmap(module)(x)


def torch_state_dict():
    torch = pytest.importorskip("torch", reason="needs PyTorch")

    def apply(state_dict, x):
        model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
        model.load_state_dict(state_dict)
        return model(torch.tensor(np.array(x))).detach().numpy()

    state_dict = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)).state_dict()
    return state_dict, apply


def lists():
    kernels, biases = drawn((6, 5, 3))
    source = [(jnp.asarray(kernel), jnp.asarray(bias)) for kernel, bias in zip(kernels, biases, strict=True)]
    return source, lambda source, x: mlp.forward(mlp.Network(*zip(*source, strict=True)), x)


@pytest.mark.parametrize(
    "made",
    [
        flax_params,
        flax_beside_other_collections,
        frozen,
        nnx_module,
        nnx_state,
        equinox_module,
        torch_state_dict,
        lists,
    ],
)
def test_objects_go_in_and_come_back_pruned(made):
    source, apply = made()
    x = jax.random.normal(jax.random.key(1), (7, 6))
    params = weights.load(source)
    masks = masks_for(params)
    np.testing.assert_allclose(apply(source, x), mlp.forward(mlp.network_of(params)[1], x), atol=1e-5)
    pruned = weights.put_back(source, masks)
    assert type(pruned) is type(source)
    np.testing.assert_allclose(apply(pruned, x), logits(params, masks, x), atol=1e-5)
    # Every mask has the layout of its kernel; nothing else is masked. Such masks are taken as well.
    masks_of_source = weights.masks_like(source, masks)
    like, whole = weights._opened(masks_of_source)[0], weights._opened(source)[0]
    after, again = (weights._opened(one)[0] for one in (pruned, weights.put_back(source, masks_of_source)))
    for name, array in whole.items():
        np.testing.assert_array_equal(np.asarray(like[name]) * np.asarray(array), np.asarray(after[name]))
        np.testing.assert_array_equal(np.asarray(again[name]), np.asarray(after[name]))
    assert sum(int(np.sum(~np.asarray(mask))) for mask in like.values()) == sum(
        int(np.sum(~mask["kernel"])) for mask in masks.values()
    )


def test_moved_weights_go_back_too():
    params = weights.load(STATE_DICT)
    masks = masks_for(params)
    moved = jax.tree.map(lambda leaf: leaf + 1, params)
    pruned = weights.put_back(STATE_DICT, masks, moved)
    np.testing.assert_array_equal(pruned["net.0.weight"], np.where(masks["net.0"]["kernel"], KERNELS[0] + 1, 0).T)
    np.testing.assert_array_equal(pruned["net.0.bias"], BIASES[0] + 1)
    with refusal("the masks are for the layers net.0, but the weights have the layers net.0, net.2, net.4"):
        weights.put_back(STATE_DICT, {"net.0": masks["net.0"]})
    with refusal("the mask of 'net.0' must be [inputs, outputs], [6, 5], not [5, 6]"):
        weights.put_back(STATE_DICT, {**masks, "net.0": {"kernel": masks["net.0"]["kernel"].T}})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda params: {"params": params},
            "the params have kernels of the layers params.net.0, params.net.2, params.net.4, but the weights have",
        ),
        (
            lambda params: params | {"net.0": {"kernel": params["net.0"]["kernel"]}},
            "have biases of the layers net.2, net.4, but the weights have biases of net.0,",
        ),
        (
            lambda params: params | {"net.0": params["net.0"] | {"bias": np.ones(3)}},
            "the params for 'net.0.bias' have the shape [3], but the array has the shape [5]",
        ),
        (
            lambda params: params | {"net.2": params["net.2"] | {"kernel": np.full((5, 4), 1e39)}},
            "the params for 'net.2.weight' are not finite in float32",
        ),
        (
            lambda params: params | {"net.2": params["net.2"] | {"kernel": np.full((5, 4), "x")}},
            "the params for 'net.2.weight' must be numbers, not <U1",
        ),
    ],
)
def test_moved_weights_that_do_not_fit_are_refused(change, problem):
    params = weights.load(STATE_DICT)
    with refusal(problem):
        weights.put_back(STATE_DICT, masks_for(params), change(params))


def test_whole_numbers_are_masked_and_never_rounded():
    whole = {"fc.weight": np.array([[3, -2]], np.int8)}
    masks = {"fc": {"kernel": np.array([[True], [False]])}}
    pruned = weights.put_back(whole, masks)["fc.weight"]
    assert pruned.dtype == np.int8 and pruned.tolist() == [[3, 0]]
    with refusal("would be rounded to int8"):
        weights.put_back(whole, masks, {"fc": {"kernel": np.array([[2.7], [1.0]])}})


@pytest.mark.parametrize(
    "change", [lambda array: array.astype(">f8"), lambda array: np.repeat(array, 2, 0)[::2], np.asfortranarray]
)
def test_any_byte_order_and_memory_layout_goes_in_and_out(tmp_path, change):
    source = {name: change(array) for name, array in STATE_DICT.items()}
    moved = jax.tree.map(lambda leaf: change(leaf + 1), PARAMS_OF_DICT)
    for array in jax.tree.leaves((source, moved)):
        array.flags.writeable = False
    pruned = weights.put_back(source, MASKS, moved)
    for name, array in weights.put_back(STATE_DICT, MASKS, MOVED).items():
        np.testing.assert_array_equal(pruned[name], array)
        assert pruned[name].dtype == source[name].dtype
    for suffix in (".npz", ".safetensors", ".pt"):
        weights.write_pruned(source, MASKS, tmp_path / f"out{suffix}", moved)
        chex.assert_trees_all_equal(weights.load(tmp_path / f"out{suffix}"), weights.load(pruned), strict=True)
        written = weights.read_arrays(tmp_path / f"out{suffix}")["net.0.weight"].dtype
        assert written.newbyteorder("=") == source["net.0.weight"].dtype.newbyteorder("=")


def test_numbers_that_are_not_finite_are_refused_and_never_written(tmp_path):
    broken = KERNELS[0].T.copy()
    broken[0, :2] = np.nan
    masks = MASKS | {"net.0": {"kernel": np.ones((6, 5), bool)}}
    for source, problem in (
        (STATE_DICT | {"net.0.weight": broken}, "array 'net.0.weight' holds NaN or infinite values, 2 of 30"),
        (
            STATE_DICT | {"net.4.bias": np.full(3, np.inf)},
            "array 'net.4.bias' holds NaN or infinite values, 3 of 3",
        ),
    ):
        np.savez(tmp_path / "source.npz", **source)
        for given, place in ((source, ""), (tmp_path / "source.npz", "source.npz: ")):
            with refusal(place + problem):
                weights.load(given)
            with refusal(place + problem):
                weights.put_back(given, masks)
            for suffix in (".npz", ".safetensors", ".pt", ".weights.h5"):
                with refusal(place + problem):
                    weights.write_pruned(given, masks, tmp_path / f"out{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == ["source.npz"]


def test_a_tilde_in_a_path_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "net.npz", **STATE_DICT)
    np.savez(tmp_path / "masks.npz", **FLAT)
    (tmp_path / "run").mkdir()
    a_run(tmp_path / "run")
    same(weights.load("~/net.npz"))
    wanted = weights.put_back(STATE_DICT, MASKS)
    for masks in ("~/masks.npz", "~/run"):
        assert_same_arrays(weights.put_back("~/net.npz", masks), wanted)
        weights.write_pruned("~/net.npz", masks, "~/out.npz")
        assert_same_arrays(read_npz(tmp_path / "out.npz"), wanted)
    with refusal("net.safetensors cannot be read"):
        weights.load("~/net.safetensors")


LOWER = np.tri(3).astype(bool)


def test_masks_of_kernels_that_the_source_stores_turned():
    """Arrays called `kernel` and stored as [outputs, inputs] have the names that masks of layers have."""
    square = {"fc.kernel": np.arange(1.0, 10).reshape(3, 3)}
    turned = np.where(LOWER.T, square["fc.kernel"], 0)
    of_layer = {"fc": {"kernel": LOWER}}
    for source in (square, square | {"fc.bias": np.ones(3)}, {"fc": {"kernel": square["fc.kernel"]}}):
        params = weights.load(source, layout="outputs_first")
        np.testing.assert_array_equal(params["fc"]["kernel"], square["fc.kernel"].T)
    # The source is flat and the masks are nested, or the names of the layers are others.
    assert (weights.put_back(square, of_layer, layout="outputs_first")["fc.kernel"] == turned).all()
    said = {"order": ["fc"], "layout": "outputs_first"}
    like = weights.masks_like(square, {"Dense_0": {"kernel": LOWER}}, **said)
    np.testing.assert_array_equal(like["fc.kernel"], LOWER.T)
    assert (weights.put_back(square, like, **said)["fc.kernel"] == turned).all()
    with refusal("the masks of the square kernels may be [inputs, outputs] or as", "give order=[...]"):
        weights.put_back(square, like, layout="outputs_first")
    # Masks of biases come from `masks_like` only.
    biased = square | {"fc.bias": np.ones(3)}
    like = weights.masks_like(biased, of_layer, layout="outputs_first")
    assert (weights.put_back(biased, like, layout="outputs_first")["fc.kernel"] == turned).all()
    # One kernel that is not square tells of all.
    wide = square | {"out.kernel": np.ones((2, 3))}
    masks = of_layer | {"out": {"kernel": np.ones((3, 2), bool)}}
    like = weights.masks_like(wide, masks, layout="outputs_first")
    for given in (like, masks, {"fc.kernel": LOWER, "out.kernel": np.ones((3, 2), bool)}):
        assert (weights.put_back(wide, given, layout="outputs_first")["fc.kernel"] == turned).all()


class Tensor(np.ndarray):
    """An array that looks like a tensor of PyTorch, and has no plain values."""

    def detach(self):
        return self

    def cpu(self):
        raise TypeError("can't convert Sparse layout tensor to numpy.\nUse Tensor.to_dense() first.")


def test_tensors_without_plain_values_are_refused():
    with refusal(
        "array 'fc.weight' has no plain values: pass its to_dense() or dequantize(); can't convert Sparse"
    ):
        weights.load({"fc.weight": np.ones((2, 2)).view(Tensor)})


def test_half_precision_is_read_back_from_npz(tmp_path):
    half = {"fc.weight": jnp.array([[1.5, 2.0]], jnp.bfloat16)}
    weights.write_pruned(half, {"fc": {"kernel": np.array([[True], [False]])}}, tmp_path / "half.npz")
    np.testing.assert_array_equal(weights.load(tmp_path / "half.npz")["fc"]["kernel"], [[1.5], [0.0]])


@pytest.mark.parametrize("kind", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16", "float64"])
def test_tensors_of_pytorch_keep_their_type(tmp_path, kind):
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    source = {"fc.weight": torch.tensor([[1.5, 2.0]]).to(getattr(torch, kind))}
    masks = {"fc": {"kernel": np.array([[True], [False]])}}
    pruned = weights.put_back(source, masks)["fc.weight"]
    assert pruned.dtype == getattr(torch, kind) and pruned.tolist() == [[1.5, 0]]
    assert weights.masks_like(source, masks)["fc.weight"].tolist() == [[True, False]]
    weights.write_pruned(source, masks, tmp_path / "net.pt")
    written = torch.load(tmp_path / "net.pt", weights_only=True)["fc.weight"]
    assert written.dtype == getattr(torch, kind) and written.tolist() == [[1.5, 0]]


def test_names_that_cannot_be_told_apart_or_are_no_dense_layers_are_refused():
    with refusal("two arrays are called 'a/kernel'"):
        weights.load({"a/kernel": np.ones((2, 2)), "a": {"kernel": np.ones((2, 2))}})
    with refusal("for a PyTorch module, pass its state_dict()"):
        weights.load({"fc.weight": [[1.0, 2.0]]})
    with refusal("array '1.weight' is float32[4], not a matrix or a bias; only dense layers can be loaded"):
        weights.load({"0.weight": np.ones((4, 4)), "1.weight": np.ones(4, np.float32)})
    with refusal("weights and masks are read outside of jit"):
        jax.jit(weights.load)({"fc.weight": jnp.ones((2, 2))})
    long = {"fc2.weight": np.ones((3, 2)), f"fc{'3' * 5_000}.weight": np.ones((4, 3))}
    assert len(weights.load(long)) == 2


def a_run(folder, moves_weights=False):
    """The files of a finished run that are read."""
    np.savez(folder / "masks.npz", **FLAT)
    np.savez(folder / "weights.npz", **{f"{n}/{k}": a for n, parts in MOVED.items() for k, a in parts.items()})
    (folder / "result.json").write_text(json.dumps({"moves_weights": moves_weights}))
    return folder


def a_layers_folder(folder, refitted=False, masks=AS_STORED):
    """The files of a finished `sa-jax layers` that are read."""
    safetensors.numpy.save_file(dict(masks), folder / "masks.safetensors")
    moved = weights.put_back(STATE_DICT, MASKS, MOVED)
    safetensors.numpy.save_file(
        {n: np.ascontiguousarray(a) for n, a in moved.items()}, folder / "pruned.safetensors"
    )
    rows = "".join(f"{name},{0.25 if refitted else ''},1\n" for name in MASKS)
    (folder / "layers.csv").write_text(f"layer,refit_error,seconds\n{rows}")
    return folder


def archive(folder):
    np.savez(folder / "chosen.npz", **FLAT)
    return folder / "chosen.npz"


def tensors(folder):
    safetensors.numpy.save_file(AS_STORED, folder / "chosen.safetensors")
    return str(folder / "chosen.safetensors")


@pytest.mark.parametrize(
    "given",
    [
        lambda folder: FLAT,
        lambda folder: {name: mask.astype(np.int32) for name, mask in AS_STORED.items()},
        lambda folder: weights.masks_like(STATE_DICT, MASKS),
        archive,
        tensors,
        a_run,
        a_layers_folder,
    ],
    ids=["flat", "as stored", "like the source", "npz", "safetensors", "run", "layers"],
)
def test_masks_are_taken_in_every_form(given, tmp_path):
    masks = given(tmp_path)
    assert_same_arrays(weights.put_back(STATE_DICT, masks), weights.put_back(STATE_DICT, MASKS))
    assert_same_arrays(weights.masks_like(STATE_DICT, masks), weights.masks_like(STATE_DICT, MASKS))
    weights.write_pruned(STATE_DICT, masks, tmp_path / "out.npz")
    assert_same_arrays(read_npz(tmp_path / "out.npz"), weights.put_back(STATE_DICT, MASKS))


@pytest.mark.parametrize("kind", ["run", "layers"])
def test_weights_that_a_run_moved_come_with_its_folder(kind, tmp_path):
    folder = a_run(tmp_path, moves_weights=True) if kind == "run" else a_layers_folder(tmp_path, refitted=True)
    expected = weights.put_back(STATE_DICT, MASKS, MOVED)
    assert not np.array_equal(expected["net.0.bias"], STATE_DICT["net.0.bias"])
    assert_same_arrays(weights.put_back(STATE_DICT, folder), expected)
    weights.write_pruned(STATE_DICT, folder, tmp_path / "out.npz")
    assert_same_arrays(read_npz(tmp_path / "out.npz"), expected)
    assert_same_arrays(weights.masks_like(STATE_DICT, folder), weights.masks_like(STATE_DICT, MASKS))
    # Params that are given come first; a file alone brings no weights.
    own = weights.put_back(STATE_DICT, MASKS)
    assert_same_arrays(weights.put_back(STATE_DICT, folder, PARAMS_OF_DICT), own)
    file = folder / ("masks.npz" if kind == "run" else "masks.safetensors")
    assert_same_arrays(weights.put_back(STATE_DICT, file), own)


def test_a_finished_run_is_put_back(finished):
    """With the files that `sa-jax run` writes."""
    source = finished / "weights.npz"
    pruned, arrays, kept = weights.put_back(source, finished), read_npz(source), read_npz(finished / "masks.npz")
    assert pruned.keys() == arrays.keys() and len(kept) == 3
    for name, array in pruned.items():
        np.testing.assert_array_equal(array, arrays[name] * kept.get(name, 1))


def test_kernels_without_a_mask_stay_whole(tmp_path):
    some = {"net.2.weight": AS_STORED["net.2.weight"]}
    expected = STATE_DICT | {"net.2.weight": np.where(some["net.2.weight"], STATE_DICT["net.2.weight"], 0)}
    for masks in (some, a_layers_folder(tmp_path, masks=some)):
        assert_same_arrays(weights.put_back(STATE_DICT, masks), expected)


def test_masks_that_are_no_masks_are_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with refusal("run holds no finished run; it has no result.json"):
        weights.put_back(STATE_DICT, tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir()
    with refusal("run holds an unfinished run: finish it first"):
        weights.masks_like(STATE_DICT, tmp_path / "run")
    (tmp_path / "run" / "result.json").write_text("{}")
    with refusal("masks.npz cannot be read: No such file"):
        weights.put_back(STATE_DICT, tmp_path / "run")
    with refusal("masks.txt: masks must be a file .npz or .safetensors, or the folder of a finished run"):
        weights.put_back(STATE_DICT, str(tmp_path / "masks.txt"))
    with refusal("masks.npz cannot be read: No such file"):
        weights.write_pruned(STATE_DICT, tmp_path / "masks.npz", tmp_path / "out.npz")
    folder = a_run(tmp_path)
    with refusal("the mask of 'net.0' must be boolean, or hold only 0 and 1; are these weights?"):
        weights.put_back(STATE_DICT, folder / "weights.npz")
    with refusal("the mask of 'net.0.weight' must be boolean, or hold only 0 and 1; are these weights?"):
        weights.put_back(STATE_DICT, STATE_DICT)
    with refusal("the mask of 'net.0.weight' must have its shape, [5, 6], not [6, 5]"):
        weights.put_back(STATE_DICT, AS_STORED | {"net.0.weight": AS_STORED["net.0.weight"].T})
    with refusal("the mask of 'net.0.bias' prunes an array that is not a kernel"):
        weights.put_back(STATE_DICT, AS_STORED | {"net.0.bias": np.zeros(5, bool)})
    with refusal(
        "the masks are for the layers net.0.weight, net.9.weight, but the weights have the layers net.0, "
    ):
        weights.put_back(STATE_DICT, {f"net.{n}.weight": AS_STORED["net.0.weight"] for n in (0, 9)})
    with refusal("the masks are for the layers none, but the weights have the layers net.0, net.2, net.4"):
        weights.put_back(STATE_DICT, None)
    with refusal("params must be a mapping of arrays, nested or flat, not list"):
        weights.put_back(STATE_DICT, MASKS, [1.0])
    (tmp_path / "layers").mkdir()
    broken = a_layers_folder(tmp_path / "layers")
    (broken / "layers.csv").unlink()
    with refusal("layers.csv cannot be read: No such file"):
        weights.put_back(STATE_DICT, broken)
