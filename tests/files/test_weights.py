"""Weights of other frameworks, in and back; files are made as those write them."""

import base64
import io
import itertools
import zipfile
import zlib

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from tests.scripts.test_convert_checkpoint import Call, Writer, tensor

from sa_jax.files import weights
from sa_jax.files.npz import read_npz
from sa_jax.networks import layer_order, mlp
from tests.conftest import refusal

# {"epoch": 1, "state_dict": ...} of Linear(3, 2), ReLU, Linear(2, 2), saved by PyTorch 2.13.
BY_TORCH = (
    "c-o~_NpI6Y6rMOsQ<tTM0AVXT1ZdOPNty(yv{=X-EJO*5EH0LtnA*av`|L?8kfK&Xt;C7t!VPgj;>w9T|9}f8PH;e+_yZs@<4GDj"
    "DJ>K$lhI`6TV~#S<4h~j7(&S;>UnsSM($W$$9i_*fh|iZbZ>)ag=+%JsBr=?7Mz+15hbGXWaMET8(Q6}Vc=>t$F_|cww!s7zv0#m"
    "*Qj45Gdx7kS0R>BseCTGWLUE%hIkD-Zq3YU4Q$ySuerud!?NodHs(FY)fPn_5}AzJ=ZiS5K5IZ9gYdHL==c`<k%y!jp}f$qMoC{="
    "XaKJyFbv#Okisd^HQ1p<mB<?Gd}2}`yD;po!l0V)&CFQ32SX-NGW$%%B)}e%S2zrNeTG#?DUns!$I$yR9H>It--_7Y%E1s`ghK=$"
    "!*G~6;MU*>>4<})jAIzXu__$*9f-`qi4a2`PBI6lS`JQA2WJ@iEQWJc$TXU8UhOA~wK)UpG=6ZwpTC$<X<T8X38Vh$EgG&zLIPPO"
    ";<b)ytO+@DeJp^`1hF#~A>V|8KW=z4jqJ42m;9Levh<5g(l-6aWEw&-l1$nAjytDgttBi=M1pd>|MB@T<)`h>94RzGIa)E-blaMp"
    "pEKsMELAp4&A)oa3)H~m5`5=~1h=Vy0Td?&W*%b0p*bu|5p>VCFt!cKu{!bfAPrn%Q;wv65Hu=dIl6!LtW1)xDe@t0g|ydGl<~l`"
    "Z_m?YBE1Ep*k%-DDf^E{(blGVi*F{gNuP0ZJ*llH%F^ZSAAL)|ci-=vwWot*VsHx|m)bt^vNVpitIxEl?#tVsmbc!2Ke|G6*Hd`n"
    "{|+F}`$hC>_RiM%mquk;0REOe!?j2SJksf<s#$eeDs0P$kSmqS<6=pylq!{Su^^0#MWIlrh~;8lC>4r@l2{hRVvf3uEr0l#AwDv`"
    "%LwO3q2)7p4e&kAJMWQhT(I<qLYV6u>b)|$;laX9h2YN_yyv#)W(bz;K!{;a6a~w@8yKw4aIo%1(Rz({qk=USM!oHzgl<%@BEqP2"
    "Y#k+bqk{PyM!oK!@;#9Z<YIqVD~>vu-wg{UM>+(1;lnmg+i4|{7-_8=j*bTYe1!XJ9P7&o))O3kgQ4Y?I(u`(6AZ)q>)G1hQxC`7"
)
WIDTHS = (6, 5, 4, 3)


def drawn(widths=WIDTHS, bias=True):
    numbers = np.random.default_rng(0)
    kernels = [numbers.normal(size=shape).astype(np.float32) for shape in itertools.pairwise(widths)]
    return kernels, [numbers.normal(size=width).astype(np.float32) if bias else None for width in widths[1:]]


KERNELS, BIASES = drawn()
STATE_DICT = {f"net.{2 * i}.weight": kernel.T for i, kernel in enumerate(KERNELS)}
STATE_DICT |= {f"net.{2 * i}.bias": bias for i, bias in enumerate(BIASES)}


def masks_for(params):
    numbers = np.random.default_rng(1)
    return {name: {"kernel": numbers.random(parts["kernel"].shape) < 0.5} for name, parts in params.items()}


def logits(params, masks, x):
    return mlp.apply(params, masks, x)


def same(params, kernels=KERNELS, biases=BIASES):
    _, network = mlp.network_of(params)
    for found, wanted in zip(network.kernels + network.biases, (*kernels, *biases), strict=True):
        np.testing.assert_array_equal(found, wanted)


def zipped(path, content, storages, root="net"):
    """A file as torch.save has written it since version 1.6."""
    pickled = io.BytesIO()
    Writer(pickled, 2).dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/data.pkl", pickled.getvalue())
        archive.writestr(f"{root}/byteorder", b"little")
        for key, array in storages.items():
            archive.writestr(f"{root}/data/{key}", np.ascontiguousarray(array).tobytes())
    return path


def of_torch(path, arrays, kind="torch.FloatStorage"):
    tensors, storages = {}, {}
    for number, (name, array) in enumerate(arrays.items()):
        strides = tuple(stride // array.itemsize for stride in np.ascontiguousarray(array).strides)
        tensors[name] = tensor(str(number), array.shape, strides, array.size, kind)
        storages[str(number)] = array
    return zipped(path, tensors, storages)


def keras_file(path, kernels=KERNELS, biases=BIASES):
    h5py = pytest.importorskip("h5py", reason="needs h5py")
    archived = path.suffix == ".keras"
    with h5py.File(path.with_suffix(".weights.h5"), "w") as file:
        file["optimizer/vars/0"] = np.ones((2, 2))
        file["layers/dropout/seed_generator/vars/0"] = np.ones(2)
        for layer, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
            group = file.create_group(f"layers/dense{f'_{layer}' if layer else ''}/vars")
            group["0"], group["1"] = kernel, bias
    if archived:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", "{}")
            archive.write(path.with_suffix(".weights.h5"), "model.weights.h5")
    return path if archived else path.with_suffix(".weights.h5")


def test_a_file_by_torch_is_read(tmp_path):
    (tmp_path / "net.pt").write_bytes(zlib.decompress(base64.b85decode("".join(BY_TORCH))))
    params = weights.load(tmp_path / "net.pt")
    kernels = [np.arange(6, dtype=np.float32).reshape(2, 3).T, np.arange(4, dtype=np.float32).reshape(2, 2).T + 2]
    same(params, kernels, [np.arange(2) + 1, np.arange(2) + 3])


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
    suffixes = [".safetensors", ".npz"] + ([".weights.h5"] if pytest.importorskip("h5py") else [])
    suffixes += [".keras"] if form == "keras" else []
    for suffix in suffixes:
        weights.write_pruned(path, masks, tmp_path / f"pruned{suffix}")
        pruned = weights.load(tmp_path / f"pruned{suffix}")
        _, network = mlp.network_of(pruned)
        np.testing.assert_array_equal(mlp.forward(network, x), logits(params, masks, x))
        if suffix != ".weights.h5":
            assert weights.read_arrays(tmp_path / f"pruned{suffix}").keys() == weights.read_arrays(path).keys()
    if form == "keras":
        with zipfile.ZipFile(tmp_path / "pruned.keras") as archive:
            assert archive.read("config.json") == b"{}"
    with refusal("pruned.txt: pruned weights go to .safetensors, .npz or .weights.h5"):
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
    # Every mask lies as its kernel does; nothing else is masked.
    like, whole = weights._opened(weights.masks_like(source, masks))[0], weights._opened(source)[0]
    after = weights._opened(pruned)[0]
    for name, array in whole.items():
        np.testing.assert_array_equal(np.asarray(like[name]) * np.asarray(array), np.asarray(after[name]))
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
    with refusal("the masks are of layers net.0; the weights of net.0, net.2, net.4"):
        weights.put_back(STATE_DICT, {"net.0": masks["net.0"]})
    with refusal("the mask of 'net.0' must be [inputs, outputs], [6, 5], not [5, 6]"):
        weights.put_back(STATE_DICT, {**masks, "net.0": {"kernel": masks["net.0"]["kernel"].T}})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda params: {"params": params}, "the params have kernels of params.net.0, params.net.2, params.net.4"),
        (lambda params: params | {"net.0": {"kernel": params["net.0"]["kernel"]}}, "have biases of net.2, net.4"),
        (
            lambda params: params | {"net.0": params["net.0"] | {"bias": np.ones(3)}},
            "the params for 'net.0.bias' are [3], and its own shape is [5]",
        ),
        (
            lambda params: params | {"net.2": params["net.2"] | {"kernel": np.full((5, 4), 1e39)}},
            "the params for 'net.2.weight' are not finite in float32",
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


def test_half_precision_is_read_back_from_npz(tmp_path):
    half = {"fc.weight": jnp.array([[1.5, 2.0]], jnp.bfloat16)}
    weights.write_pruned(half, {"fc": {"kernel": np.array([[True], [False]])}}, tmp_path / "half.npz")
    np.testing.assert_array_equal(weights.load(tmp_path / "half.npz")["fc"]["kernel"], [[1.5], [0.0]])


def test_tied_weights_are_read_and_views_of_one_storage_bounded(tmp_path):
    square = np.arange(4, dtype=np.float32).reshape(2, 2)
    tied = {"in.weight": tensor("0", (2, 2), (2, 1), 4), "out.weight": tensor("0", (2, 2), (2, 1), 4)}
    turned = {"turned.weight": tensor("0", (2, 2), (1, 2), 4)}
    arrays = weights.read_arrays(zipped(tmp_path / "net.pt", tied | turned, {"0": square}))
    for name, wanted in (("in.weight", square), ("out.weight", square), ("turned.weight", square.T)):
        np.testing.assert_array_equal(arrays[name], wanted)
    views = {f"{i}.weight": tensor("0", (4 - i % 2, 1), (1, 1 + i), 4) for i in range(40)}
    with refusal("is larger than what is stored of it"):
        weights.read_arrays(zipped(tmp_path / "many.pt", views, {"0": square}))


def test_names_that_cannot_be_told_apart_or_are_no_dense_layers_are_refused():
    with refusal("two arrays are called 'a/kernel'"):
        weights.load({"a/kernel": np.ones((2, 2)), "a": {"kernel": np.ones((2, 2))}})
    with refusal("of a PyTorch module give its state_dict()"):
        weights.load({"fc.weight": [[1.0, 2.0]]})
    with refusal(
        "array '1.weight' is float32[4], not a matrix or a bias; other layers than dense ones: fold them"
    ):
        weights.load({"0.weight": np.ones((4, 4)), "1.weight": np.ones(4, np.float32)})
    with refusal("do so outside of jit"):
        jax.jit(weights.params_of)({"fc.weight": jnp.ones((2, 2))})
    long = {"fc2.weight": np.ones((3, 2)), f"fc{'3' * 5_000}.weight": np.ones((4, 3))}
    assert len(weights.load(long)) == 2


def test_masks_of_a_run_go_back(tmp_path):
    """They are flat in its masks.npz."""
    params = weights.load(STATE_DICT)
    masks = masks_for(params)
    np.savez(tmp_path / "masks.npz", **{f"{name}/kernel": mask["kernel"] for name, mask in masks.items()})
    one, other = (weights.put_back(STATE_DICT, m) for m in (masks, read_npz(tmp_path / "masks.npz")))
    for name in STATE_DICT:
        np.testing.assert_array_equal(one[name], other[name])


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
    found, network = mlp.network_of(weights.load(tmp_path / "net.npz"))
    assert names is None or found == names
    for kernel, wanted in zip(network.kernels, kernels, strict=True):
        np.testing.assert_array_equal(kernel, wanted)


def test_what_can_be_read_in_two_ways_is_refused_and_can_be_said(tmp_path):
    square = {"W1": np.arange(9.0).reshape(3, 3), "W2": np.ones((3, 3))}
    np.savez(tmp_path / "square.npz", **square)
    both = ("[inputs, outputs] and layers 1 3-3, 2 3-3", "[outputs, inputs] and layers 1 3-3, 2 3-3", "layout=")
    with refusal("square.npz: the weights can be read in two ways", *both):
        weights.load(tmp_path / "square.npz")
    for layout in weights.LAYOUTS:
        params = weights.load(tmp_path / "square.npz", layout=layout)
        wanted = square["W1"] if layout == "inputs_first" else square["W1"].T
        np.testing.assert_array_equal(params["1"]["kernel"], wanted)
    backwards = {f"fc{3 - i}.weight": kernel.T for i, kernel in enumerate(KERNELS)}
    with refusal("[outputs, inputs] and layers fc3 6-5, fc2 5-4, fc1 4-3", "layers fc1 3-4, fc2 4-5, fc3 5-6"):
        weights.load(backwards)
    unordered = {"body.weight": np.full((3, 3), 1.0), "neck.weight": np.full((3, 3), 2.0)}
    with refusal("layers body 3-3, neck 3-3, or", "layers neck 3-3, body 3-3: say which by order=[...]"):
        weights.load(unordered)
    said = weights.load(unordered, order=["neck", "body"])
    _, network = mlp.network_of(said)
    assert list(said) == ["Dense_0", "Dense_1"] and float(network.kernels[0][0, 0]) == 2
    masks = {"Dense_0": {"kernel": np.zeros((3, 3), bool)}, "Dense_1": {"kernel": np.ones((3, 3), bool)}}
    pruned = weights.put_back(unordered, masks, order=["neck", "body"])
    assert pruned["neck.weight"].sum() == 0 and pruned["body.weight"].sum() == 9
    with refusal("order must be a list that names each layer once, ['body', 'neck']; not ['neck']"):
        weights.load(unordered, order=["neck"])
    with refusal("['body', 'neck']; not 'neck'"):
        weights.load(unordered, order="neck")
    with refusal("layout must be 'inputs_first' or 'outputs_first', not 'rows'"):
        weights.load(unordered, layout="rows")
    with refusal("the layers fit each other as body, neck and as neck, body: number them in network order"):
        mlp.network_of({name: {"kernel": np.ones((3, 3))} for name in ("body", "neck")})


def test_many_layers_are_ordered_at_once_and_hopeless_ones_given_up():
    chain = {f"layers.{i}.weight": np.ones((3, 3)) for i in reversed(range(300))}
    assert list(weights.load(chain)) == [f"layers.{i}" for i in range(300)]
    names = ["".join(pair) for pair in itertools.product("abcdefgh", repeat=2)]
    hopeless = {name: (3, 3) for name in names[:-1]} | {names[-1]: (4, 5)}
    with refusal("too many orders to try"):
        layer_order.orders(hopeless)


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "torch._utils._rebuild_qtensor"])
def test_a_zip_runs_no_code(tmp_path, name):
    touched = tmp_path / "touched"
    zipped(tmp_path / "net.pt", {"fc.weight": Call(name, f"touch {touched}")}, {})
    with refusal("net.pt is no PyTorch file of tensors", name, "is never done"):
        weights.load(tmp_path / "net.pt")
    assert not touched.exists()


HUGE = (10**6, 10**6)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"fc.weight": tensor("0", HUGE, (10**6, 1), 10**12)}, "reaches out of its storage"),
        ({"fc.weight": tensor("0", HUGE, (0, 0), 4)}, "larger than what is stored"),
        ({"fc.weight": tensor("0", (2, 2), (-2, 1), 4)}, "reaches out of its storage"),
        ({"fc.weight": tensor("0", (2, 2), (2, 1), 4, offset=-1)}, "reaches out of its storage"),
        ({"fc.weight": tensor("../../secret", (2, 2), (2, 1), 4)}, "net/data/../../secret is missing"),
        ({"fc.weight": tensor("0", (2, 2), (2, 1), 4, "os.system")}, "a storage of an unknown kind, os.system"),
        ({((), ()): 1}, "keys that are neither text nor numbers"),
        ([1, 2], "it holds no tensors by name"),
    ],
)
def test_hostile_zips_are_refused(tmp_path, content, problem):
    (tmp_path / "secret").write_bytes(np.ones(4, np.float32).tobytes())
    with refusal("net.pt is no PyTorch file of tensors", problem):
        weights.load(zipped(tmp_path / "net.pt", content, {"0": np.ones(4, np.float32)}))


def test_damaged_zips_are_refused(tmp_path):
    whole = of_torch(tmp_path / "net.pt", STATE_DICT).read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with refusal("cut.pt is no PyTorch file of tensors"):
            weights.load(tmp_path / "cut.pt")
    with zipfile.ZipFile(tmp_path / "deflated.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", b"\x80\x02}." + bytes(10**6))
    with refusal("compressed or longer than the file"):
        weights.load(tmp_path / "deflated.pt")


def test_keras_files_of_other_files_and_of_more_than_they_hold_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py", reason="needs h5py")
    (tmp_path / "secret").write_bytes(np.ones(4, np.float32).tobytes())
    makers = {
        "lies in another file": lambda file: file.create_dataset(
            "layers/dense/vars/0", (2, 2), "f4", external=[(str(tmp_path / "secret"), 0, 16)]
        ),
        "larger than the file": lambda file: file.create_dataset("layers/dense/vars/0", HUGE, "f4", chunks=(9, 9)),
        "hold no kernel": lambda file: file.__setitem__("layers", h5py.ExternalLink("k.weights.h5", "/layers")),
    }
    keras_file(tmp_path / "k.any")
    for problem, make in makers.items():
        with h5py.File(tmp_path / "bad.weights.h5", "w") as file:
            make(file)
        with refusal("bad.weights.h5", problem):
            weights.load(tmp_path / "bad.weights.h5")
    (tmp_path / "bad.weights.h5").write_bytes((tmp_path / "k.weights.h5").read_bytes()[:500])
    with refusal("bad.weights.h5 is no Keras file of weights"):
        weights.load(tmp_path / "bad.weights.h5")
    (tmp_path / "bad.keras").write_bytes(b"PK")
    with refusal("bad.keras is no Keras file of weights"):
        weights.load(tmp_path / "bad.keras")
