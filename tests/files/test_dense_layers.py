"""Which arrays are whose kernels and biases, in which order and layout."""

import gc

import chex
import numpy as np
import pytest
import safetensors.numpy

from sa_jax import files
from sa_jax.files import dense_layers
from sa_jax.networks import mlp
from tests.conftest import refusal
from tests.files.weight_files import BIASES, KERNELS, same

WRAPPED = {
    "module.fc1.weight_orig": KERNELS[0].T,
    "module.fc1.weight_mask": (KERNELS[0].T > 0).astype(np.float32),
    "module.fc1.bias": BIASES[0],
    "module.out.weight": KERNELS[1].T,
}


@pytest.mark.parametrize(
    ("arrays", "names", "kernels"),
    [
        (WRAPPED, ["fc1", "out"], [np.maximum(KERNELS[0], 0), KERNELS[1]]),
        ({"head.weight": KERNELS[2].T, "body.weight": KERNELS[1].T, "entry.weight": KERNELS[0].T}, None, KERNELS),
        ({f"W{i}": kernel for i, kernel in enumerate(KERNELS)}, None, KERNELS),  # by shapes alone
        ({f"W{i}": kernel.T for i, kernel in enumerate(KERNELS)}, None, KERNELS),
        ({f"fc{i}_w": kernel.T for i, kernel in enumerate(KERNELS)}, ["fc0", "fc1", "fc2"], KERNELS),
        ({f"arr_{2 * i + j}": a for i in range(3) for j, a in enumerate((KERNELS[i], BIASES[i]))}, None, KERNELS),
        ({"weight": KERNELS[0].T}, [""], KERNELS[:1]),
        # Numbered from the last layer on: the shapes know better, once biases tell the layout.
        (
            {f"fc{3 - i}.weight": kernel.T for i, kernel in enumerate(KERNELS)}
            | {f"fc{3 - i}.bias": bias for i, bias in enumerate(BIASES)},
            None,
            KERNELS,
        ),
        ({f"a{i}.weight": a for i, a in enumerate(KERNELS)} | {"a0.bias": BIASES[0]}, None, KERNELS),
    ],
)
def test_order_and_layout_follow_from_names_and_shapes(tmp_path, arrays, names, kernels):
    np.savez(tmp_path / "net.npz", **arrays)
    found, network = mlp.network_of(files.load(tmp_path / "net.npz"))
    assert names is None or found == names
    for kernel, wanted in zip(network.kernels, kernels, strict=True):
        np.testing.assert_array_equal(kernel, wanted)


def test_what_can_be_read_in_two_ways_is_refused_and_can_be_said(tmp_path):
    square = {"W1": np.arange(9.0).reshape(3, 3), "W2": np.ones((3, 3))}
    np.savez(tmp_path / "square.npz", **square)
    both = ("[inputs, outputs] and layers 1 3-3, 2 3-3", "[outputs, inputs] and layers 1 3-3, 2 3-3", "layout=")
    with refusal("square.npz: the weights can be read in two ways", *both):
        files.load(tmp_path / "square.npz")
    for layout in dense_layers.LAYOUTS:
        params = files.load(tmp_path / "square.npz", layout=layout)
        wanted = square["W1"] if layout == "inputs_first" else square["W1"].T
        np.testing.assert_array_equal(params["1"]["kernel"], wanted)
    backwards = {f"fc{3 - i}.weight": kernel.T for i, kernel in enumerate(KERNELS)}
    with refusal("[outputs, inputs] and layers fc3 6-5, fc2 5-4, fc1 4-3", "layers fc1 3-4, fc2 4-5, fc3 5-6"):
        files.load(backwards)
    unordered = {"body.weight": np.full((3, 3), 1.0), "neck.weight": np.full((3, 3), 2.0)}
    with refusal("layers body 3-3, neck 3-3, or", "layers neck 3-3, body 3-3: choose with order=[...]"):
        files.load(unordered)
    said = files.load(unordered, order=["neck", "body"])
    _, network = mlp.network_of(said)
    assert list(said) == ["Dense_0", "Dense_1"] and float(network.kernels[0][0, 0]) == 2
    masks = {"Dense_0": {"kernel": np.zeros((3, 3), bool)}, "Dense_1": {"kernel": np.ones((3, 3), bool)}}
    pruned = files.put_back(unordered, masks, order=["neck", "body"])
    assert pruned["neck.weight"].sum() == 0 and pruned["body.weight"].sum() == 9
    with refusal("order must be a list that names each layer once, ['body', 'neck']; not ['neck']"):
        files.load(unordered, order=["neck"])
    with refusal("['body', 'neck']; not 'neck'"):
        files.load(unordered, order="neck")
    with refusal("layout must be one of inputs_first, outputs_first, not 'rows'"):
        files.load(unordered, layout="rows")
    with refusal(
        "the layers fit each other in two orders, [body, neck] and [neck, body]: number them in network order"
    ):
        mlp.network_of({name: {"kernel": np.ones((3, 3))} for name in ("body", "neck")})


def test_many_layers_are_ordered_at_once():
    chain = {f"layers.{i}.weight": np.ones((3, 3)) for i in reversed(range(300))}
    assert list(files.load(chain)) == [f"layers.{i}" for i in range(300)]


def test_kernels_first_and_biases_after_them_are_those_of_scikit_learn(tmp_path):
    np.savez(tmp_path / "classifier.npz", *KERNELS, *BIASES)  # *classifier.coefs_, *classifier.intercepts_
    same(files.load(tmp_path / "classifier.npz"))
    same(files.load([*KERNELS, *BIASES]))
    same(files.load((KERNELS, BIASES)))
    masks = {str(i): {"kernel": kernel > 0} for i, kernel in enumerate(KERNELS)}
    files.write_pruned(tmp_path / "classifier.npz", masks, tmp_path / "pruned.npz")
    same(files.load(tmp_path / "pruned.npz"), [np.maximum(kernel, 0) for kernel in KERNELS])


def test_kernels_first_that_can_be_read_in_two_ways_or_do_not_fit_are_refused():
    square = [np.arange(9.0).reshape(3, 3), np.ones((3, 3))]
    biases = [np.ones(3), np.zeros(3)]
    with refusal("the weights can be read in two ways", "layout='inputs_first' or 'outputs_first'"):
        files.load([*square, *biases])
    same(files.load([*square, *biases], layout="inputs_first"), square, biases)
    with refusal("layer '0': bias [4] does not fit kernel [6, 5]"):
        files.load([*KERNELS[:2], BIASES[1], BIASES[0]])
    with refusal("layer '2' has two arrays for its bias"):
        files.load([*KERNELS, *BIASES[:2]])


class Array:
    """An array of a type that only PyTorch has."""

    def __init__(self, dtype, *shape):
        self.dtype, self.shape = dtype, shape


def test_types_that_are_no_numbers_are_named():
    with refusal("array 'fc.weight' is qint8[3, 2], not a matrix or a bias"):
        dense_layers.layers_of({"fc.weight": Array("torch.qint8", 3, 2)})
    with refusal("array 'fc.weight' is complex64[3, 2], not a matrix or a bias"):
        files.load({"fc.weight": np.ones((3, 2), np.complex64)})


def test_a_mask_of_nothing_is_refused():
    with refusal("layer 'fc' has a mask for its bias, and no bias"):
        files.load({"fc.weight": np.ones((3, 2)), "fc.bias_mask": np.ones(3)})


def ones(*shape):
    return np.ones(shape, np.float32)


def save(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        safetensors.numpy.save_file(arrays, path)
    return path


PARAMS = {
    name: {"kernel": np.arange(6 * scale, 6 * scale + 6, dtype=np.float32).reshape(shape), "bias": ones(shape[1])}
    for scale, (name, shape) in enumerate({"net.fc1": (2, 3), "net.fc2": (3, 2)}.items())
}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize("matrix", ["weight", "kernel"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32])
def test_weights_load_alike_in_every_form(tmp_path, suffix, separator, matrix, dtype):
    arrays = {}
    for layer, parameters in PARAMS.items():
        for kind, array in parameters.items():
            name = f"{layer}.{kind if kind == 'bias' else matrix}".replace(".", separator)
            arrays[name] = np.ascontiguousarray(array.T if matrix == "weight" else array).astype(dtype)
    loaded = files.load(save(tmp_path / f"net{suffix}", arrays))
    chex.assert_trees_all_equal(loaded, PARAMS, strict=True)
    names, network = mlp.network_of(loaded)
    assert names == ["net.fc1", "net.fc2"] and network.sizes == [2, 3, 2]


GOOD = {"fc1.weight": ones(3, 2), "fc1.bias": ones(3), "fc2.weight": ones(4, 3)}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"fc1.running_mean": ones(3)},
            "array 'fc1.running_mean' is none of LAYER.weight, LAYER.kernel, LAYER.bias",
        ),
        ({"mean": ones(3, 2)}, "array 'mean' is none of LAYER.weight, LAYER.kernel, LAYER.bias"),
        ({"fc1.weight": ones(3, 2, 1)}, "array 'fc1.weight' is float32[3, 2, 1], not a matrix or a bias"),
        ({"fc1.bias": ones(3, 1)}, "array 'fc1.bias' is float32[3, 1], not a matrix or a bias"),
        ({"fc1.weight": ones(3, 2) > 0}, "array 'fc1.weight' is bool[3, 2]"),
        ({"fc1.weight": ones(3, 2) * np.nan}, "array 'fc1.weight' holds NaN or infinite values"),
        ({"fc1.bias": ones(3) * np.inf}, "array 'fc1.bias' holds NaN or infinite values"),
        ({"fc2.weight": np.full((4, 3), 1e300)}, "array 'fc2.weight' holds NaN or infinite values"),  # in float32
        ({"fc2.weight": ones(3, 4)}, "layer 'fc2' takes 4 inputs, but the layer before it has 3 outputs"),
        ({"fc1.bias": ones(2)}, "layer 'fc1': bias [2] does not fit kernel [2, 3]"),
        ({"fc3.bias": ones(2)}, "layer 'fc3' has a bias and no kernel"),
        ({"fc1.kernel": ones(2, 3)}, "layer 'fc1' has two arrays for its kernel"),
        ({"fc1/weight": ones(3, 2)}, "layer 'fc1' has two arrays for its kernel"),
    ],
)
def test_bad_weights_are_named(tmp_path, suffix, changes, problem):
    path = save(tmp_path / f"net{suffix}", {**GOOD, **changes})
    with refusal(str(path), problem):
        files.load(path)


def test_a_file_without_layers_is_refused(tmp_path):
    for suffix in (".npz", ".safetensors"):
        with refusal(f"net{suffix}: the parameters hold no kernel"):
            files.load(save(tmp_path / f"net{suffix}", {}))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("form", ["empty", "text", "truncated"])
def test_a_damaged_file_is_named(tmp_path, suffix, form):
    path = save(tmp_path / f"net{suffix}", GOOD)
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"fc1.weight: 1, 2, 3\n", "truncated": content[:-9]}[form])
    with refusal(f"{path} is damaged or not a"):
        files.load(path)
    gc.collect()  # so that a file left open is noticed here


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("net.npz", "No such file"),
        ("net.safetensors", "No such file"),
        ("net.pt", "No such file"),
        ("net.h5", "No such file"),
        ("net.txt", "weights must be a file .npz, .safetensors, .pt, .pth, .ckpt, .bin, .h5 or .keras"),
        ("net", "weights must be a file .npz, .safetensors"),
    ],
)
def test_a_missing_file_or_another_kind_is_named(tmp_path, name, problem):
    with refusal(str(tmp_path / name), problem):
        files.load(tmp_path / name)
