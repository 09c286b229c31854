"""The linear layers of any Flax model in one call: exact counts, keys by name, nested masks, refusals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sa_jax.networks import mlp
from sa_jax.networks.masks import apply_masks
from sa_jax.networks.patterns import NM, Channels, Columns, Layer, Rows, Unit
from sa_jax.networks.trees import leaves_by_name
from sa_jax.pruning import Moments, collect_moments, collect_recorded
from sa_jax.pruning.gram import damped, layer_error
from sa_jax.pruning.layers import layer_key, prune_layers
from sa_jax.pruning.linear import prune_linear
from sa_jax.pruning.moments import dense_correction, no_inputs
from tests.conftest import refusal


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(12, name="wide")(nn.LayerNorm()(x)))


class Model(nn.Module):
    """Layers at two depths, a convolution that has no moments, and a layer with an odd number of weights."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (1,), name="conv")(x[..., None]).sum(-2)
        return nn.Dense(3, name="head")(nn.Dense(5, name="odd")(Encoder(name="encoder")(x)))


@pytest.fixture(scope="module")
def task():
    """The model, its variables, inputs and moments; its layers have 96, 60 and 15 branches."""
    mix = jax.random.normal(jax.random.key(2), (6, 6))
    x = jax.random.normal(jax.random.key(0), (64, 6)) @ mix
    model = Model()
    variables = model.init(jax.random.key(1), x)
    moments = collect_moments(model, variables, [x[:32], x[32:]])
    del moments["conv"]
    return model, variables, x, moments


KERNELS = {"encoder/wide/kernel": (8, 12), "odd/kernel": (12, 5), "head/kernel": (5, 3)}


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.5, 0.33, 0.01, 1.0])
def test_a_number_is_the_share_of_all_layers_together(task, density):
    model, variables, x, moments = task
    masks = prune_layers(jax.random.key(3), variables, moments, density, sweeps=0.5)
    assert list(masks) == ["params"] and {*masks["params"]} == {"encoder", "odd", "head"}
    found = leaves_by_name(masks["params"])
    assert {name: mask.shape for name, mask in found.items()} == KERNELS
    assert all(mask.dtype == bool for mask in found.values())
    counts = {name: int(mask.sum()) for name, mask in found.items()}
    assert sum(counts.values()) == round(density * 171)
    assert all(abs(counts[name] - density * mask.size) < 1 for name, mask in found.items())
    pruned = apply_masks(variables, masks)
    assert model.apply(pruned, x).shape == (64, 3)
    np.testing.assert_array_equal(pruned["params"]["conv"]["kernel"], variables["params"]["conv"]["kernel"])


@pytest.mark.slow
def test_each_layer_is_pruned_as_alone(task):
    """The mask is that of the transposed kernel by `prune_linear`, whatever other layers there are."""
    _, variables, _, moments = task
    key = jax.random.key(3)
    together = prune_layers(key, variables["params"], moments, Unit(0.5), sweeps=1.0)
    for name in moments:
        alone = prune_layers(key, variables["params"], {name: moments[name]}, Unit(0.5), sweeps=1.0)
        path = f"{name}/kernel"
        assert list(leaves_by_name(alone)) == [path]
        weight = leaves_by_name(variables["params"])[path].T
        gram = damped(moments[name].gram, 0.01)
        expected = prune_linear(layer_key(key, name), weight, gram, Unit(0.5), 1.0).T
        np.testing.assert_array_equal(leaves_by_name(together)[path], expected)
        np.testing.assert_array_equal(leaves_by_name(alone)[path], expected)
    other = prune_layers(jax.random.key(4), variables["params"], moments, Unit(0.5), sweeps=1.0)
    assert any((one != two).any() for one, two in zip(*map(jax.tree.leaves, (together, other)), strict=True))


@pytest.mark.slow
def test_the_outer_level_changes_nothing_but_the_nesting(task):
    _, variables, _, moments = task
    with_outer = prune_layers(jax.random.key(0), {**variables, "batch_stats": {}}, moments, 0.5, sweeps=0.5)
    without = prune_layers(jax.random.key(0), variables["params"], moments, 0.5, sweeps=0.5)
    assert jax.tree.structure(with_outer) == jax.tree.structure({"params": without})
    assert all(map(np.array_equal, *map(jax.tree.leaves, (with_outer, without))))


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [NM(2, 4), Columns(0.5), Layer(0.25)], ids=str)
def test_a_pattern_holds_in_each_layer(pattern):
    x = jax.random.normal(jax.random.key(0), (40, 8))
    model = mlp.MLP([12, 4])
    variables = model.init(jax.random.key(1), x)
    moments = collect_moments(model, variables, [x])
    masks = prune_layers(jax.random.key(2), variables, moments, pattern, sweeps=0.5)["params"]
    for layer in masks.values():
        rows = np.asarray(layer["kernel"]).T
        if pattern == NM(2, 4):
            assert (rows.reshape(-1, 4).sum(1) == 2).all()
        elif pattern == Columns(0.5):
            assert rows.any(0).sum() == rows.all(0).sum() == rows.shape[1] // 2
        else:
            assert rows.sum() == rows.size // 4
    assert mlp.apply(variables, {"params": masks}, x).shape == (40, 4)


@pytest.mark.slow
def test_more_sweeps_lose_less_than_wanda(task):
    _, variables, _, moments = task
    name = "encoder/wide"
    weight = variables["params"]["encoder"]["wide"]["kernel"].T
    errors = []
    for sweeps in (1e-3, 20.0):
        mask = prune_layers(jax.random.key(0), variables, {name: moments[name]}, Unit(0.25), sweeps, damping=0.0)
        pruned = jnp.where(mask["params"]["encoder"]["wide"]["kernel"].T, weight, 0)
        errors.append(float(layer_error(weight, moments[name].gram, pruned)))
    assert errors[1] < errors[0]


@pytest.mark.slow
def test_moments_of_pruned_inputs_correct_the_layers_behind():
    x = jax.random.normal(jax.random.key(0), (200, 8))
    dense = {"first": {"kernel": jax.random.normal(jax.random.key(1), (8, 16))}}
    dense["second"] = {"kernel": jax.random.normal(jax.random.key(2), (16, 6))}
    pruned = dense | {"first": {"kernel": jnp.where(jnp.arange(16) % 2, dense["first"]["kernel"], 0.3)}}

    def forward(params, x, record):
        hidden = jax.nn.relu(x @ params["first"]["kernel"])
        record("second", hidden)

    moments = collect_recorded(forward, pruned, [{"x": x}], dense=dense)
    found = prune_layers(jax.random.key(3), pruned, moments, Unit(0.5), sweeps=5.0, damping=0.0)["second"][
        "kernel"
    ]
    weight, layer = dense["second"]["kernel"].T, moments["second"]
    expected = prune_linear(
        layer_key(jax.random.key(3), "second"),
        weight,
        layer.gram,
        Unit(0.5),
        5.0,
        dense_correction=dense_correction(layer, weight),
    )
    np.testing.assert_array_equal(found.T, expected)


@pytest.mark.slow
def test_a_model_that_is_one_layer_and_an_nnx_model_are_pruned():
    x = jax.random.normal(jax.random.key(0), (20, 4))
    variables = nn.Dense(3).init(jax.random.key(1), x)
    masks = prune_layers(jax.random.key(2), variables, collect_moments(nn.Dense(3), variables, [x]), 0.5, 0.5)
    assert jax.tree.map(lambda mask: (mask.shape, int(mask.sum())), masks) == {"params": {"kernel": ((4, 3), 6)}}

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.fc = nnx.Linear(4, 3, rngs=rngs)

    _, state = nnx.split(Net(nnx.Rngs(0)))
    moments = collect_recorded(lambda params, x, record: record("fc", x), {}, [{"x": x}])
    masks = prune_layers(jax.random.key(2), state, moments, 0.5, 0.5)
    assert jax.tree.map(lambda mask: (mask.shape, int(mask.sum())), masks) == {"fc": {"kernel": ((4, 3), 6)}}
    np.testing.assert_array_equal(apply_masks(state, masks)["fc"]["kernel"][...] != 0, masks["fc"]["kernel"])


@pytest.mark.slow
def test_works_inside_jit(task):
    _, variables, _, moments = task
    inside = jax.jit(lambda params, moments: prune_layers(jax.random.key(0), params, moments, 0.5, 0.5))
    counts = [int(mask.sum()) for mask in jax.tree.leaves(inside(variables, moments))]
    assert sum(counts) == round(0.5 * 171)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"moments": {}}, ["moments is empty: it must have the moments of at least one layer's inputs"]),
        ({"rename": ("odd", "oddd")}, ["no array 'oddd/kernel' in the params", "odd/kernel"]),
        ({"rename": ("odd", "head")}, ["layer 'head'", "gram must be [5, 5] for this weight, not [12, 12]"]),
        ({"density": NM(2, 5)}, ["layer 'encoder/wide'", "2:5 needs a multiple of 5 inputs, not 8"]),
        ({"density": Rows(0.01)}, ["layer 'encoder/wide'", "density 0.01 keeps none of the 12"]),
        ({"density": "2:4"}, ["density must be a number or a pattern, not the text '2:4'", "NM(2, 4)"]),
        ({"density": 0.001}, ["density 0.001 keeps 0 of 171 branches"]),
        ({"density": 1.5}, ["density must be", "1.5"]),
        ({"sweeps": 0}, ["sweeps must be a finite number above 0, not 0"]),
        ({"damping": -1}, ["damping must be a finite number of at least 0, not -1"]),
        ({"rng_key": 0}, ["rng_key must be one key, such as jax.random.key(0), not int"]),
        ({"moments": {"odd": np.eye(12)}}, ["moments of 'odd' must be Moments, as collect_moments returns them"]),
        ({"moments": [np.eye(12)]}, ["moments must map names of layers to their moments, not list"]),
        ({"moments": {"params": {"odd": np.eye(12)}}}, ["moments of 'params' must be Moments", "not dict"]),
    ],
)
def test_bad_input_is_named(task, changes, parts):
    _, variables, _, moments = task
    changes = dict(changes)
    if "rename" in changes:
        old, new = changes.pop("rename")
        moments = {new if name == old else name: layer for name, layer in moments.items() if name != new}
    arguments = {"rng_key": jax.random.key(0), "params": variables, "moments": moments, "sweeps": 0.5} | changes
    with refusal(*parts):
        prune_layers(**arguments)


@pytest.mark.slow
def test_layers_that_no_input_reached_are_pruned_to_the_same_count():
    """An expert that was never called, beside one that was."""
    params = {name: {"kernel": jax.random.normal(jax.random.key(2), (8, 4))} for name in ("seen", "dead")}
    moments = {"seen": Moments(jnp.eye(8), jnp.zeros(8), jnp.float32(9)), "dead": no_inputs(8)}
    for density, counts in ((0.25, [8, 8]), (NM(1, 4), [8, 8]), (Columns(0.5), [16, 16])):
        masks = prune_layers(jax.random.key(0), params, moments, density, 0.5)
        assert [int(masks[name]["kernel"].sum()) for name in params] == counts


def test_params_and_moments_in_the_other_byte_order_give_the_same():
    params = {"fc": {"kernel": np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)}, "name": "expert"}
    gram = np.cov(np.random.default_rng(1).normal(size=(8, 30))).astype(np.float32)
    moments = {"fc": Moments(gram, gram[0], np.float32(30), 0.1 * gram)}
    swapped = jax.tree.map(lambda array: array.astype(array.dtype.newbyteorder(">")), moments)
    found = [
        prune_layers(jax.random.key(0), tree, given, Unit(0.5), 0.5)["fc"]["kernel"]
        for tree, given in (
            (params, moments),
            ({"fc": {"kernel": params["fc"]["kernel"].astype(">f4")}}, swapped),
        )
    ]
    np.testing.assert_array_equal(*found)


class Convolutions(nn.Module):
    """A convolution, a depthwise one and a dense layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
        return nn.Dense(4)(x.reshape(len(x), -1))


@pytest.mark.parametrize("density", [0.3, Unit(1 / 3), Channels(1 / 3)], ids=str)
def test_convolutions_are_pruned_beside_dense_layers(density):
    x = jax.random.normal(jax.random.key(0), (16, 6, 6, 3))
    model = Convolutions()
    params = model.init(jax.random.key(1), x)
    moments = collect_moments(model, params, [x])
    if isinstance(density, Channels):  # a group of one channel cannot lose any
        moments.pop("Conv_1")
    masks = prune_layers(jax.random.key(2), params, moments, density)["params"]
    for name, layer in masks.items():
        assert layer["kernel"].shape == params["params"][name]["kernel"].shape
    kernels = [layer["kernel"] for layer in masks.values()]
    if density == 0.3:
        assert sum(int(one.sum()) for one in kernels) == round(0.3 * sum(one.size for one in kernels))
    elif density == Unit(1 / 3):
        assert all(
            (one.reshape(-1, one.shape[-1]).sum(0) == round(one.size / one.shape[-1] / 3)).all() for one in kernels
        )
    else:
        assert masks["Conv_0"]["kernel"].any((0, 1, 3)).sum() == 1
        assert masks["Conv_0"]["kernel"].sum() == 9 * 8
    moved = model.apply(apply_masks(params, {"params": masks}), x)
    assert jnp.isfinite(moved).all()
