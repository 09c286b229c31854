"""Keras models with layers between the Dense ones: folded, passed over or refused, and written back."""

import json
import re

import numpy as np
import pytest

from sa_jax import files
from sa_jax.files import keras_files, keras_models
from sa_jax.networks import mlp
from tests.conftest import refusal
from tests.files.weight_files import BIASES, KERNELS, dense, keras_archive, keras_file, keras_layer

h5py = pytest.importorskip("h5py", reason="needs h5py")

draw = np.random.default_rng(1)
MEAN, VARIANCE, GAMMA, BETA = (draw.normal(size=6) ** 2 + 0.1 for _ in range(4))
NORMS = [array.astype(np.float32) for array in (GAMMA, BETA, MEAN, VARIANCE)]
INPUT = keras_layer("InputLayer", "in", batch_shape=[None, 6])
IMAGE = keras_layer("InputLayer", "in", batch_shape=[None, 2, 3])
FLATTEN = keras_layer("Flatten", "flat", data_format="channels_last")
RELU = keras_layer("ReLU", "relu", max_value=None, negative_slope=0.0, threshold=0.0)
DROPOUT = keras_layer("Dropout", "drop", rate=0.5)
THREE = [dense("a", 5, "relu"), dense("b", 4, "relu"), dense("c", 3)]
ARRAYS = {"dense": [KERNELS[0], BIASES[0]], "dense_1": [KERNELS[1], BIASES[1]], "dense_2": [KERNELS[2], BIASES[2]]}
NO_FIRST_BIAS = ARRAYS | {"dense": [KERNELS[0]]}


def rescaling(scale, offset=0.0, name="rescale"):
    return keras_layer("Rescaling", name, scale=scale, offset=offset)


def normalization(**config):
    return keras_layer("Normalization", "norm", **{"axis": [-1], "mean": None, "variance": None} | config)


def batch_norm(name="bn", **config):
    return keras_layer(
        "BatchNormalization", name, **{"axis": -1, "epsilon": 1e-3, "scale": True, "center": True} | config
    )


def norms(layer, units=6):
    """The arrays of a BatchNormalization layer."""
    config = layer["config"]
    present = (config["scale"], config["center"], True, True)
    return [array[:units] for array, there in zip(NORMS, present, strict=True) if there]


def outputs(layers, arrays, x):
    """What Keras computes, from the definitions of its layers, float64; without a softmax at the end."""
    left = {
        kind: [a for name, a in arrays.items() if re.sub(r"_\d+$", "", name) == kind]
        for kind in ("dense", "batch_normalization", "normalization")
    }
    for layer in layers:
        kind, config = layer["class_name"], layer["config"]
        activation = config.get("activation", "relu" if kind == "ReLU" else None)
        if kind == "Dense":
            kernel, *bias = left["dense"].pop(0)
            x = x @ np.float64(kernel) + sum(bias)
        elif kind == "Rescaling":
            scale = config["scale"]["config"]["value"] if isinstance(config["scale"], dict) else config["scale"]
            x = x * scale + config["offset"]
        elif kind == "BatchNormalization":
            parts = [np.float64(part) for part in left["batch_normalization"].pop(0)]
            gamma = parts.pop(0) if config["scale"] else 1
            beta = parts.pop(0) if config["center"] else 0
            x = gamma * (x - parts[0]) / np.sqrt(parts[1] + config["epsilon"]) + beta
        elif kind == "Normalization":
            given = config["mean"], config["variance"]
            mean, variance = given if given[0] is not None else left["normalization"].pop(0)[:2]
            deviation = np.sqrt(np.float64(variance))
            x = x * deviation + mean if config.get("invert") else (x - mean) / deviation
        elif kind == "Flatten":
            x = x.reshape(len(x), -1)
        x = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}.get(activation, lambda x: x)(x)
    return x


BN_LIST = batch_norm("bn2", axis=[1], scale=False)
# Each with its layers and arrays; the activation is relu, or tanh where its name says so.
FOLDED = {
    "rescaling": ([INPUT, rescaling(1 / 255), *THREE], ARRAYS),
    "rescaling with offset": ([rescaling(2.0, -1.0), rescaling(0.5, name="r2"), *THREE], ARRAYS),
    "rescaling of channels": ([IMAGE, rescaling([0.1, 0.2, 0.3], [1.0, 2.0, 3.0]), FLATTEN, *THREE], ARRAYS),
    "rescaling by an array": (
        [INPUT, rescaling({"class_name": "__numpy__", "config": {"value": [1.0, 2, 3, 4, 5, 6]}}), *THREE],
        ARRAYS,
    ),
    "normalization": (
        [INPUT, normalization(), *THREE],
        {"normalization": [np.float32(MEAN), np.float32(VARIANCE), np.int32(9)]} | ARRAYS,
    ),
    "normalization of an image": (
        [IMAGE, normalization(axis=[-1]), FLATTEN, *THREE],
        {"normalization": [np.float32(MEAN[:3]), np.float32(VARIANCE[:3]), np.int32(9)]} | ARRAYS,
    ),
    "given normalization": (
        [INPUT, normalization(mean=[*MEAN], variance=[*VARIANCE]), *THREE],
        ARRAYS,
    ),
    "inverted normalization": ([INPUT, normalization(mean=2.0, variance=9.0, invert=True), *THREE], ARRAYS),
    "normalization after": (
        [INPUT, dense("a", 5, use_bias=False), batch_norm(), RELU, *THREE[1:], batch_norm("bn2")],
        NO_FIRST_BIAS
        | {"batch_normalization": norms(batch_norm(), 5), "batch_normalization_1": norms(batch_norm(), 3)},
    ),
    "normalization before": (
        [batch_norm(), THREE[0], BN_LIST, *THREE[1:]],
        ARRAYS | {"batch_normalization": norms(batch_norm()), "batch_normalization_1": norms(BN_LIST, 5)},
    ),
    "tanh, all in turn": (
        [
            *(INPUT, rescaling(3.0, 1.0), dense("a", 5), batch_norm(), rescaling(0.5, 0.1, "r2")),
            *(keras_layer("Activation", "tanh", activation="tanh"), DROPOUT),
            *(rescaling(2.0, 0.3, "r3"), dense("b", 4, "tanh"), keras_layer("GaussianNoise", "noise", stddev=1.0)),
            *(dense("c", 3), rescaling(2.0, 1.0, "r4"), keras_layer("Softmax", "soft", axis=-1)),
        ],
        ARRAYS | {"batch_normalization": norms(batch_norm(), 5)},
    ),
    "softmax": ([INPUT, *THREE[:2], dense("c", 3, "softmax")], ARRAYS),
}  # fmt: skip


@pytest.fixture(params=FOLDED)
def case(request, tmp_path):
    layers, arrays = FOLDED[request.param]
    shape = (7, 2, 3) if IMAGE in layers else (7, 6)
    x = np.random.default_rng(2).normal(size=shape)
    path = keras_archive(tmp_path / "net.keras", layers, arrays)
    return path, layers, arrays, x, "tanh" if "tanh" in request.param else "relu"


def predict(params, masks, x, activation):
    return mlp.apply(params, masks, np.float32(x.reshape(len(x), -1)), activation)


def kept(params, share):
    numbers = np.random.default_rng(3)
    return {name: {"kernel": numbers.random(parts["kernel"].shape) < share} for name, parts in params.items()}


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5 * np.abs(wanted).max())


def test_layers_between_are_folded(case):
    path, layers, arrays, x, activation = case
    params = files.load(path, activation=activation)
    assert list(params) == ["dense", "dense_1", "dense_2"]
    close(predict(params, kept(params, 2), x, activation), outputs(layers, arrays, x))


def test_a_pruned_copy_computes_what_was_annealed(case, tmp_path):
    path, layers, arrays, x, activation = case
    params = files.load(path, activation=activation)
    masks = kept(params, 0.5)
    wanted = np.asarray(predict(params, masks, x, activation))
    files.write_pruned(path, masks, tmp_path / "pruned.keras")
    content = keras_files.read(tmp_path / "pruned.keras")
    assert json.dumps(content.config) == json.dumps(keras_files.read(path).config)
    stored = {
        name: [content.arrays[place] for place in places] for name, places in content.layers.items() if places
    }
    close(outputs(layers, stored, x), wanted)
    close(predict(files.load(tmp_path / "pruned.keras", activation=activation), masks, x, activation), wanted)
    for name, mask in masks.items():
        np.testing.assert_array_equal(stored[name][0], np.where(mask["kernel"], arrays[name][0], 0))
    for name in set(arrays) - set(masks):
        for found, old in zip(stored[name], arrays[name], strict=True):
            np.testing.assert_array_equal(found, old)
    for suffix in (".npz", ".safetensors", ".weights.h5"):  # without the other layers
        files.write_pruned(path, masks, tmp_path / f"pruned{suffix}")
        close(predict(files.load(tmp_path / f"pruned{suffix}"), masks, x, activation), wanted)


def test_moved_weights_are_written_in_the_terms_of_the_file(case, tmp_path):
    path, _, arrays, x, activation = case
    params = files.load(path, activation=activation)
    moved = {name: {kind: array * 1.5 for kind, array in parts.items()} for name, parts in params.items()}
    if "bias" in params["dense"] and len(arrays["dense"]) == 1:
        moved["dense"]["bias"] = params["dense"]["bias"]
    masks = kept(params, 0.5)
    files.write_pruned(path, masks, tmp_path / "pruned.keras", params=moved)
    found = files.load(tmp_path / "pruned.keras", activation=activation)
    close(predict(found, masks, x, activation), predict(moved, masks, x, activation))


def test_biases_stay_to_the_bit_without_a_shift_of_inputs(tmp_path):
    path = keras_archive(tmp_path / "net.keras", *FOLDED["rescaling"])
    files.write_pruned(path, kept(files.load(path), 0.5), tmp_path / "pruned.keras")
    found = keras_files.read_arrays(tmp_path / "pruned.keras")
    for name, (_, bias) in ARRAYS.items():
        np.testing.assert_array_equal(found[f"layers/{name}/vars/1"], bias)


def test_what_a_file_cannot_hold_is_refused(tmp_path):
    first = dense("a", 5, "relu", use_bias=False)
    path = keras_archive(tmp_path / "net.keras", [rescaling(1.0, 2.0), first, *THREE[1:]], NO_FIRST_BIAS)
    params = files.load(path)
    np.testing.assert_allclose(params["dense"]["bias"], 2 * KERNELS[0].sum(0), rtol=1e-6)
    with refusal("net.keras: layer 'a' has no bias for what the layers before it add"):
        files.write_pruned(path, kept(params, 0.5), tmp_path / "pruned.keras")
    assert not (tmp_path / "pruned.keras").exists()
    path = keras_archive(tmp_path / "net.keras", [rescaling(0.0), *THREE], ARRAYS)
    params = files.load(path)
    files.write_pruned(path, kept(params, 0.5), tmp_path / "pruned.keras")
    moved = params | {"dense": {"kernel": params["dense"]["kernel"] + 1, "bias": params["dense"]["bias"]}}
    with refusal("layer 'a' cannot hold the weights: a layer beside it scales them by zero"):
        files.write_pruned(path, kept(params, 0.5), tmp_path / "pruned.keras", params=moved)


def test_the_activation_of_the_file_must_be_that_of_its_use(tmp_path):
    path = keras_archive(tmp_path / "net.keras", *FOLDED["tanh, all in turn"])
    with refusal("net.keras: its layers apply 'tanh', not 'relu': give activation='tanh' to files.load"):
        files.load(path)
    with refusal("net.keras: its layers apply 'relu', not 'tanh'", "set ACTIVATION = 'relu'"):
        files.load(keras_file(tmp_path / "net.keras"), activation="tanh")
    one = keras_archive(tmp_path / "one.keras", [dense("a", 5)], {"dense": ARRAYS["dense"]})
    assert list(files.load(one, activation="tanh")) == ["dense"]


def branch(*inputs):
    """An inbound node of Keras 3 from the outputs of layers."""
    return [
        {"args": [{"config": {"keras_history": [name, 0, 0]}} for name in inputs], "kwargs": {"training": False}}
    ]


def functional(layers, nodes):
    return [
        layer | {"name": layer["config"]["name"], "inbound_nodes": nodes.get(layer["config"]["name"], [])}
        for layer in layers
    ]


NODES = {"rescale": branch("in"), "a": branch("rescale"), "b": branch("a"), "c": branch("b")}
OLD_NODES = {
    name: [[[node[0]["args"][0]["config"]["keras_history"][0], 0, 0, {}]]] for name, node in NODES.items()
}


@pytest.mark.parametrize(
    ("nodes", "end"), [(NODES, ["c", 0, 0]), (OLD_NODES, [["c", 0, 0]])], ids=["Keras 3", "2"]
)
def test_functional_chains_are_followed_from_node_to_node(tmp_path, nodes, end):
    # Listed in another order than they compute in.
    layers = functional([INPUT, rescaling(0.5, 1.0), *THREE][::-1], nodes)
    arrays = dict(zip(ARRAYS, [*ARRAYS.values()][::-1], strict=True))
    path = keras_archive(tmp_path / "net.keras", layers, arrays, "Functional", output_layers=end)
    params = files.load(path)
    assert list(params) == ["dense_2", "dense_1", "dense"]
    x = np.random.default_rng(2).normal(size=(7, 6))
    close(predict(params, kept(params, 2), x, "relu"), outputs([rescaling(0.5, 1.0), *THREE], ARRAYS, x))
    files.write_pruned(path, kept(params, 0.5), tmp_path / "pruned.keras")
    pruned = files.load(tmp_path / "pruned.keras")
    close(predict(pruned, kept(params, 2), x, "relu"), predict(params, kept(params, 0.5), x, "relu"))


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [
        (NODES | {"c": branch("a", "b")}, "branches at the layers 'a', 'b'"),
        (NODES | {"c": branch("a")}, "branches at the layers 'b'"),
        (NODES | {"b": [*branch("a"), *branch("b")]}, "layer 'b' is used twice"),
        (
            NODES | {"a": [branch("rescale")[0] | {"kwargs": {"training": True}}]},
            "layer 'a' is used twice, or as in",
        ),
        (NODES | {"a": branch("c")}, "the model's config is damaged"),
    ],
    ids=["joins", "two ends", "shared", "training", "circle"],
)
def test_models_that_branch_are_refused(tmp_path, nodes, problem):
    layers = functional([INPUT, rescaling(0.5), *THREE], nodes)
    path = keras_archive(tmp_path / "net.keras", layers, ARRAYS, "Functional", output_layers=["c", 0, 0])
    with refusal("net.keras: ", problem):
        files.load(path)


def other(kind, **config):
    return [THREE[0], keras_layer(kind, "other", **config), *THREE[1:]]


REFUSED = {
    "other kinds": (other("LayerNormalization", axis=-1), "layer 'other' is of the kind 'LayerNormalization'"),
    "models within": (other("Sequential", layers=[]), "layer 'other' is of the kind 'Sequential'"),
    "own classes": ([THREE[0] | {"registered_name": "mine>Dense"}, *THREE[1:]], "is of the kind 'mine>Dense'"),
    "own activations": ([dense("a", 5, {"value": ["code"]}), *THREE[1:]], "layer 'a' applies {'value': ['code']}"),
    "other activations": ([dense("a", 5, "elu"), *THREE[1:]], "layer 'a' applies 'elu': all but the last"),
    "exact gelu": ([dense("a", 5, "gelu"), dense("b", 4, "gelu"), THREE[2]], "'a' applies Keras's exact gelu"),
    "two activations": ([dense("a", 5, "tanh"), *THREE[1:]], "layer 'b' applies 'relu', and 'a' 'tanh'"),
    "no activation": ([dense("a", 5), *THREE[1:]], "layer 'a' applies no activation"),
    "bounded relu": ([dense("a", 5), RELU | {"config": RELU["config"] | {"max_value": 6.0}}, *THREE[1:]], "bound"),
    "activation twice": (other("Activation", activation="relu"), "layer 'other' applies 'relu' to what no Dense"),
    "activation first": ([INPUT, RELU, *THREE], "layer 'relu' applies 'relu' to what no Dense"),
    "activation last": ([*THREE[:2], dense("c", 3, "relu")], "layer 'c' applies 'relu' to the logits"),
    "softmax of samples": ([*THREE, keras_layer("Softmax", "soft", axis=0)], "applies 'softmax over the samples'"),
    "after the softmax": ([*THREE[:2], dense("c", 3, "softmax"), rescaling(2.0), DROPOUT], "'rescale' comes"),
    "images": ([IMAGE, *THREE], "layer 'a' takes inputs of the shape [2, 3]: flatten them"),
    "channels first": ([IMAGE, keras_layer("Flatten", "f", data_format="channels_first"), *THREE], "channels f"),
    "other units": ([dense("a", 9, "relu"), *THREE[1:]], "holds float32[6, 5], float32[5]: not the kernel"),
    "no arrays": ([*THREE, RELU, dense("d", 2)], "layer 'd' holds nothing: not the kernel and bias of a Dense"),
    "no Dense": ([INPUT], "the model has no Dense layer"),
    "no layers": (3, "the model's config is damaged or of an unknown form"),
    "no settings": ([keras_layer("Rescaling", "r"), *THREE], "damaged or of an unknown form: KeyError('scale')"),
    "text": ([rescaling("a\nb"), *THREE], "damaged or of an unknown form: ValueError"),
    "not finite": ([rescaling(float("inf")), *THREE], "layer 'rescale' scales or shifts by what is not finite"),
    "beyond float32": ([rescaling(1e39), *THREE], "layer 'a' has weights beyond float32"),
    "scale of another size": ([INPUT, rescaling([1.0, 2.0]), *THREE], "damaged or of an unknown form: ValueError"),
    "huge inputs": (
        [keras_layer("InputLayer", "in", batch_shape=[None, 10**6, 10**6]), rescaling(1.0), FLATTEN, *THREE],
        "damaged or of an unknown form: ValueError('inputs of the shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_all_else_is_refused_by_name(tmp_path, name):
    layers, problem = REFUSED[name]
    with refusal(f"{tmp_path / 'net.keras'}: ", problem):
        files.load(keras_archive(tmp_path / "net.keras", layers, ARRAYS))


def test_other_models_and_quantized_layers_are_refused(tmp_path):
    for layers in (THREE, None):
        with refusal("net.keras: the model is a 'MyModel'; only Sequential and Functional"):
            files.load(keras_archive(tmp_path / "net.keras", layers, ARRAYS, "MyModel"))
    quantized = ARRAYS | {"dense": [KERNELS[0].astype(np.int8), BIASES[0], np.ones(5, np.float32)]}
    with refusal("net.keras: layer 'a' holds int8[6, 5], float32[5], float32[5]: not the kernel"):
        files.load(keras_archive(tmp_path / "net.keras", THREE, quantized))
    unheard = ARRAYS | {"batch_normalization": [array[:5] for array in NORMS[:3]] + [np.full(5, np.nan)]}
    with refusal("array 'layers/batch_normalization/vars/3' holds NaN or infinite values, first at [0]"):
        files.load(keras_archive(tmp_path / "net.keras", [THREE[0], batch_norm(), *THREE[1:]], unheard))
    negative = ARRAYS | {"batch_normalization": [array[:5] for array in NORMS[:3]] + [np.full(5, -1.0)]}
    with refusal("net.keras: layer 'bn' scales or shifts by what is not finite"):
        files.load(keras_archive(tmp_path / "net.keras", [THREE[0], batch_norm(), *THREE[1:]], negative))


def whole_h5(path, layers, arrays):
    """Writes a whole model as Keras did before its .keras archives; `arrays` by the layers' own names."""
    kinds = {"Dense": ("kernel:0", "bias:0"), "BatchNormalization": ("gamma:0", "beta:0", "mean:0", "variance:0")}
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": layers}})
        for layer in layers:
            name = layer["config"]["name"]
            group = file.create_group(f"model_weights/{name}")
            parts = [f"{name}/{part}" for part in kinds.get(layer["class_name"], ())]
            group.attrs["weight_names"] = [part.encode() for part in parts]
            for part, array in zip(parts, arrays.get(name, ()), strict=True):
                group[part] = array
    return path


def test_whole_models_in_h5_files_are_folded_too(tmp_path):
    layers = [rescaling(0.5), dense("z", 5), batch_norm(), RELU, dense("y", 4, "relu"), dense("x", 3)]
    named = dict(zip("zyx", ARRAYS.values(), strict=True)) | {"bn": norms(batch_norm(), 5)}
    path = whole_h5(tmp_path / "net.h5", layers, named)
    params = files.load(path)
    x = np.random.default_rng(2).normal(size=(7, 6))
    wanted = outputs(layers, ARRAYS | {"batch_normalization": named["bn"]}, x)
    close(predict(params, kept(params, 2), x, "relu"), wanted)
    masks = kept(params, 0.5)
    files.write_pruned(path, masks, tmp_path / "pruned.h5")
    found = keras_files.read_arrays(tmp_path / "pruned.h5")["model_weights/z/z/kernel:0"]
    np.testing.assert_array_equal(found, np.where(next(iter(masks.values()))["kernel"], KERNELS[0], 0))


def test_the_config_tells_the_order_where_names_do_not(tmp_path):
    layers = [dense("dense_9", 4, "relu"), dense("dense_8", 4, "relu"), dense("dense_7", 4)]
    kernels = [np.random.default_rng(number).normal(size=(4, 4)) for number in range(3)]
    named = {layer["config"]["name"]: [kernel, kernel[0]] for layer, kernel in zip(layers, kernels, strict=True)}
    path = whole_h5(tmp_path / "net.h5", layers, named)
    params = files.load(path)
    assert list(params) == ["Dense_0", "Dense_1", "Dense_2"]
    for found, kernel in zip(params.values(), kernels, strict=True):
        np.testing.assert_array_equal(found["kernel"], np.float32(kernel))
    masks = kept(params, 0.5)
    for name in ("pruned.h5", "pruned.npz"):
        files.write_pruned(path, masks, tmp_path / name)
        for found, kernel, mask in zip(files.load(tmp_path / name).values(), kernels, masks.values(), strict=True):
            np.testing.assert_array_equal(found["kernel"], np.float32(np.where(mask["kernel"], kernel, 0)))


def test_weights_alone_are_read_if_all_layers_are_dense(tmp_path):
    path = keras_file(tmp_path / "net.any")
    assert keras_models.read_arrays(path).keys() == keras_files.read_arrays(path).keys()
    with h5py.File(path, "a") as file:
        file.create_group("layers/dropout_1/vars")
    files.load(path)
    with h5py.File(path, "a") as file:
        file.create_group("layers/rescaling/vars")
    with refusal("net.weights.h5: layer 'rescaling' is not Dense, and a file of weights alone does not tell"):
        files.load(path)
    with h5py.File(path, "w") as file:  # of an older Keras, where layers have their own names
        for name, parts in {"fc1": ["fc1/kernel:0"], "dropout": [], "rescale": []}.items():
            file.create_group(name).attrs["weight_names"] = [part.encode() for part in parts]
        file["fc1/fc1/kernel:0"] = KERNELS[0]
    with refusal("layer 'rescale' is not Dense"):
        files.load(path)
    with h5py.File(path, "a") as file:
        del file["rescale"]
    np.testing.assert_array_equal(next(iter(files.load(path).values()))["kernel"], KERNELS[0])
