"""Kernels of models that are more than multilayer perceptrons, and the same as `prune` where they are not."""

import chex
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sa_jax import moves, pruning
from sa_jax.files import datasets
from sa_jax.landscapes.full import full_model
from sa_jax.landscapes.mlp import masked_mlp
from sa_jax.networks import masks, mlp
from sa_jax.networks.energies import cross_entropy, kl_to_teacher
from sa_jax.networks.masks import apply_masks
from sa_jax.networks.patterns import NM
from sa_jax.networks.trees import leaves_by_name
from sa_jax.pruning.kernels import prune_kernels
from sa_jax.pruning.problem import teacher_of
from tests.conftest import refusal


class Attention(nn.Module):
    """Rows of an image as tokens."""

    @nn.compact
    def __call__(self, x):
        tokens = nn.Dense(8, name="embed")(x.reshape(-1, 8, 8))
        tokens += nn.MultiHeadDotProductAttention(2, name="attention")(tokens, tokens)
        return nn.Dense(10, name="head")(nn.relu(nn.LayerNorm(name="norm")(tokens)).reshape(len(x), -1))


class Convolution(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2, name="trunk")(x.reshape(-1, 8, 8, 1)))
        return nn.Dense(10, name="head")(nn.relu(nn.Dense(16, name="hidden")(x.reshape(len(x), -1))))


@pytest.fixture(scope="module")
def digits():
    train = datasets.load_dataset("digits").train
    return jnp.asarray(train.inputs[:50], jnp.float32), jnp.asarray(train.labels[:50])


COLD = {"temperature_start": 1e-3, "temperature_end": 1e-5, "logit_scale": 2.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "chosen", "options"),
    [
        (Attention(), None, {}),
        (Attention(), ["attention/query/kernel", "attention/value/kernel", "head/kernel"], {}),
        (Convolution(), None, {"energy": "kl_to_teacher"}),
        (Convolution(), ["trunk/kernel", "head/kernel"], {"start": "random"}),
    ],
    ids=["attention", "heads of attention", "convolution", "trunk"],
)
def test_chosen_kernels_are_annealed_and_all_else_stays(digits, model, chosen, options):
    x, y = digits
    params = model.init(jax.random.key(0), x)["params"]

    def apply_fn(params, x):
        return model.apply({"params": params}, x)

    tree, result = prune_kernels(
        jax.random.key(1), apply_fn, params, x, y, chosen, density=0.2, num_steps=200, **COLD, **options
    )
    found = leaves_by_name(tree)
    paths = chosen or [path for path in ("embed/kernel", "hidden/kernel", "head/kernel") if path[:-7] in params]
    assert sorted(found) == sorted(paths)
    total = sum(mask.size for mask in found.values())
    assert sum(int(mask.sum()) for mask in found.values()) == round(0.2 * total) == int(result.best.sum())
    np.testing.assert_array_equal(result.best, np.concatenate([np.ravel(mask) for mask in found.values()]))
    pruned = apply_masks(params, tree)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        same = dict(jax.tree_util.tree_leaves_with_path(pruned))[path]
        np.testing.assert_array_equal(same, leaf * found[name] if name in found else leaf)
    teacher = options.get("energy") == "kl_to_teacher"
    energy = kl_to_teacher(2.0) if teacher else cross_entropy(2.0)
    targets = teacher_of(apply_fn(params, x)) if teacher else y
    assert float(result.best_energy) == pytest.approx(float(energy(apply_fn(pruned, x), targets)), rel=1e-4)
    leaves = {
        path: leaf for path, leaf in flax.traverse_util.flatten_dict(params, sep="/").items() if path in found
    }
    magnitudes = np.concatenate([np.abs(leaves[path]).ravel() for path in found])
    largest = np.split(
        masks.by_score(magnitudes, result.best.sum()), np.cumsum([m.size for m in found.values()])[:-1]
    )
    by_magnitude = {path: part.reshape(leaves[path].shape) for path, part in zip(found, largest, strict=True)}
    assert result.num_accepted > 0
    if "start" not in options:
        assert result.best_energy < energy(apply_fn(apply_masks(params, by_magnitude), x), targets)


@pytest.mark.slow
def test_the_energy_of_a_mask_is_that_of_prune(digits):
    x, y = digits
    params = mlp.MLP((12, 11, 10)).init(jax.random.key(0), x)["params"]
    names, network = mlp.network_of(params)
    mask = jax.random.uniform(jax.random.key(1), (network.total,)) < 0.4
    swaps, energy = moves.uniform_swap(), cross_entropy(2.0)

    def apply_fn(params, x):
        return mlp.MLP((12, 11, 10)).apply({"params": params}, x)

    full = full_model(apply_fn, params, [f"{name}/kernel" for name in names], swaps, energy)
    fast = masked_mlp(network, swaps, energy)
    one = full.init((mask, swaps.init(mask)), (x, y)).energy
    assert float(one) == pytest.approx(float(fast.init(mask, (x.T, y)).energy), rel=1e-5)


@pytest.mark.slow
def test_a_perceptron_is_annealed_incrementally(digits):
    x, y = digits
    model = mlp.MLP([12, 10], "tanh")
    params = model.init(jax.random.key(0), x)["params"]

    def apply_fn(params, x):
        return model.apply({"params": params}, x)

    found, result = prune_kernels(jax.random.key(1), apply_fn, params, x, y, density=0.1, num_steps=100)
    alone = {"start": "magnitude", "move": "uniform"}
    tree, expected = pruning.prune(jax.random.key(1), params, x, y, 0.1, 100, **alone, activation="tanh")
    assert result.best_energy == expected.best_energy
    chex.assert_trees_all_equal(found, tree)


@pytest.mark.slow
def test_masks_are_nested_like_params_of_any_kind(digits):
    """Mappings hold only the chosen kernels, other nodes None in place of what is not pruned."""
    x, y = digits
    keys = jax.random.split(jax.random.key(0), 2)
    kernels = [jax.random.normal(key, shape) for key, shape in zip(keys, ((64, 8), (8, 10)), strict=True)]
    params = ({"a": {"w": kernels[0], "b": jnp.ones(8)}, "c": jnp.ones(3)}, [kernels[1], jnp.ones(10)])

    def apply_fn(params, x):
        first, second = params
        return jnp.tanh(x @ first["a"]["w"] + first["a"]["b"]) @ second[0] + second[1]

    found, result = prune_kernels(
        jax.random.key(1), apply_fn, params, x, y, ["0/a/w", "1/0"], density=0.1, num_steps=20
    )
    assert isinstance(found, tuple) and isinstance(found[1], list) and found[1][1] is None
    shapes = jax.tree.map(lambda mask: mask.shape, found)
    assert shapes == ({"a": {"w": (64, 8), "b": None}, "c": None}, [(8, 10), None])
    np.testing.assert_array_equal(np.concatenate([mask.ravel() for mask in jax.tree.leaves(found)]), result.best)
    pruned = apply_masks(params, found)
    np.testing.assert_array_equal(pruned[0]["a"]["w"], jnp.where(found[0]["a"]["w"], kernels[0], 0))
    np.testing.assert_array_equal(pruned[1][1], params[1][1])
    nested, _ = prune_kernels(
        jax.random.key(1), lambda p, x: apply_fn(p["net"], x), {"net": params}, x, y, ["net/1/0"], num_steps=20
    )
    assert nested["net"][0] == {"a": {"w": None, "b": None}, "c": None} and nested["net"][1][0].shape == (8, 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"chosen": ["haed/kernel"]}, "no array 'haed/kernel' in the params; did you mean head/kernel?"),
        ({"chosen": []}, "no kernel is chosen; the params hold"),
        ({"density": 0.0}, "density must be a finite number above 0 and at most 1, not 0.0"),
        ({"density": NM(2, 4)}, "density must be a finite number above 0 and at most 1, not NM(kept=2, group=4)"),
        ({"start": "saliency"}, "start must be one of magnitude, random, not 'saliency'"),
        ({"start": "score_search"}, "start must be one of magnitude, random, not 'score_search'"),
        ({"move": "informed"}, "unknown option 'move'; options: energy, start"),
        ({"num_step": 10}, "unknown option 'num_step'; did you mean num_steps?"),
        ({"rng_key": 1}, "rng_key must be one key, such as jax.random.key(0), not int"),
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1, not 0"),
        ({"chosen": "head/kernel"}, "chosen must be a list of paths, such as ['head/kernel']"),
        ({"y": jnp.full(50, 10)}, "labels run from 10 to 10, but the network has 10 classes"),
        ({"x": jnp.full((50, 64), jnp.nan)}, "inputs hold NaN or infinite values"),
        ({"y": jnp.zeros(50)}, "labels must be whole numbers, not float32: convert them, with y.astype(int)"),
        ({"y": np.full(50, 2**32 + 1)}, "labels run from 4294967297"),  # 1 in int32
        ({"x": np.full((50, 64), "a")}, "inputs must be numbers, not <U1"),
        ({"y": jnp.zeros(3, int)}, "apply_fn must give logits [samples, classes], and labels be whole numbers"),
    ],
)
def test_bad_input_is_named(digits, changes, problem):
    x, y = digits
    params = Convolution().init(jax.random.key(0), x)["params"]
    arguments = {"rng_key": jax.random.key(0), "x": x, "y": y, "num_steps": 10} | changes
    with refusal(problem):
        prune_kernels(
            apply_fn=lambda params, x: Convolution().apply({"params": params}, x), params=params, **arguments
        )


def gated(params, x):
    return (x * params["gate"]) @ params["fc"]["kernel"]


def small(kind="<f4"):
    random = np.random.default_rng(0)
    params = {"gate": np.ones(8, kind), "fc": {"kernel": random.normal(size=(8, 4)).astype(kind)}}
    x = random.normal(size=(20, 8)).astype(kind)
    return params, x, (np.arange(20) % 4).astype("i4" if kind == "<f4" else ">u8")


@pytest.mark.slow
def test_arrays_in_the_other_byte_order_give_the_same():
    found = [
        prune_kernels(jax.random.key(0), gated, *small(kind), density=0.5, num_steps=100)
        for kind in ("<f4", ">f4", ">f4")
    ]
    for other in found[1:]:
        chex.assert_trees_all_equal(other, found[0])


def test_arguments_of_another_kind_are_named():
    params, x, y = small()
    with refusal("apply_fn must be a function of (params, x), not dict"):
        prune_kernels(jax.random.key(0), params, gated, x, y)
    with refusal("apply_fn", "(params, x)", "(params)"):
        prune_kernels(jax.random.key(0), lambda params: params, params, x, y)
    with refusal("rng_key must be one key, such as jax.random.key(0), not function"):
        prune_kernels(gated, jax.random.key(0), params, x, y)
    with refusal("labels must be whole numbers, not float32"):
        prune_kernels(jax.random.key(0), gated, params, y, x)
    for made, what in (
        (lambda params, x: (gated(params, x), {}), "tuple"),
        (lambda params, x: {"logits": gated(params, x)}, "dict"),
        (lambda params, x: None, "None"),
    ):
        with refusal(f"apply_fn must give logits alone, not {what}: pick them", "apply_fn(params, x)[0]"):
            prune_kernels(jax.random.key(0), made, params, x, y)
    for leaf, what in (("relu", "str"), (jax.nn.relu, "custom_jvp")):
        with refusal(f"'act' in params must be an array of numbers, not {what}: leave it out"):
            prune_kernels(jax.random.key(0), gated, params | {"act": leaf}, x, y)


def test_a_module_of_equinox_is_split_first_because_it_holds_its_activation():
    eqx = pytest.importorskip("equinox")
    _, x, y = small()
    model = eqx.nn.MLP(8, 4, 6, 1, key=jax.random.key(0))
    with refusal("'activation' in params must be an array of numbers"):
        prune_kernels(jax.random.key(0), lambda model, x: jax.vmap(model)(x), model, x, y, ["layers/0/weight"])
    arrays, rest = eqx.partition(model, eqx.is_array)

    def apply_fn(arrays, x):
        return jax.vmap(eqx.combine(arrays, rest))(x)

    found, _ = prune_kernels(
        jax.random.key(0), apply_fn, arrays, x, y, ["layers/0/weight"], density=0.5, num_steps=20
    )
    pruned = apply_masks(model, found)
    assert pruned.activation is model.activation and int((pruned.layers[0].weight != 0).sum()) == 24
    assert pruned(x[0]).shape == (4,)


def test_masks_of_no_kernel_or_another_shape_are_refused():
    params = {"head": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    with refusal("no array 'haed/kernel' in the params; did you mean head/kernel?"):
        apply_masks(params, {"haed/kernel": jnp.ones((2, 3), bool)})
    with refusal("the mask of 'head/kernel' must have its shape, [2, 3], not [3]"):
        apply_masks(params, {"head/kernel": jnp.ones(3, bool)})


@pytest.mark.slow
def test_kernels_of_nnx_are_found():
    class Head(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)
            self.head = nnx.Linear(32, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.conv(x)).reshape(len(x), -1))

    graph, params = nnx.split(Head(nnx.Rngs(0)))
    x, y = jax.random.normal(jax.random.key(0), (6, 4, 4, 1)), jnp.arange(6) % 3
    found, _ = prune_kernels(
        jax.random.key(1), lambda params, x: nnx.merge(graph, params)(x), params, x, y, density=0.5, num_steps=20
    )
    assert jax.tree.map(lambda mask: int(mask.sum()), found) == {"head": {"kernel": 48}}
    pruned = nnx.merge(graph, apply_masks(params, found))
    np.testing.assert_array_equal(pruned.head.kernel[...] != 0, found["head"]["kernel"])
