"""The moments of layers' inputs, in parts, with padding, and of a Flax model's dense layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.pruning.moments import collect_moments, collect_recorded, no_inputs, with_inputs
from tests.conftest import refusal


@pytest.mark.slow
def test_moments_are_the_same_in_parts_and_without_padding():
    x = jax.random.normal(jax.random.key(0), (3, 10, 4)) + 1
    present = jnp.arange(30).reshape(3, 10) % 4 != 0
    moments = no_inputs(4)
    for part, there in zip(x, present, strict=True):
        moments = with_inputs(moments, part, there)
    seen = np.asarray(x[present])
    np.testing.assert_allclose(moments.gram, seen.T @ seen / len(seen), rtol=1e-5)
    np.testing.assert_allclose(moments.mean, seen.mean(0), rtol=1e-5)
    assert moments.count == len(seen)


class Twice(nn.Module):
    """Eleven layers, so that their names do not sort by number, and one that is called twice."""

    @nn.compact
    def __call__(self, x):
        for _ in range(11):
            x = nn.tanh(nn.Dense(3)(x))
        again = nn.Dense(3, name="again")
        return again(again(x))


def test_collect_moments_sees_what_every_dense_layer_sees():
    x = jax.random.normal(jax.random.key(0), (20, 3))
    model = Twice()
    variables = model.init(jax.random.key(1), x)
    moments = collect_moments(model, variables, [x[:10], (x[10:],)])
    assert list(moments) == [*(f"Dense_{i}" for i in range(11)), "again"]
    np.testing.assert_allclose(moments["Dense_0"].gram, x.T @ x / 20, rtol=1e-5, atol=1e-6)
    assert moments["Dense_0"].count == 20 and moments["again"].count == 40
    with refusal("at least one batch"):
        collect_moments(model, variables, [])
    with refusal("found no linear layer (such as nn.Dense or nn.Conv) in the model"):
        collect_moments(nn.LayerNorm(), nn.LayerNorm().init(jax.random.key(0), x), [x])


class Trained(nn.Module):
    """Behaves in another way while it is trained, as most models do."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


class Encoder(nn.Module):
    @nn.compact
    def encode(self, x):
        return nn.Dense(3)(x)


def test_options_of_the_call_are_given_by_keyword():
    x = jax.random.normal(jax.random.key(0), (20, 3))
    model = Trained()
    variables = model.init(jax.random.key(1), x, False)
    moments = collect_moments(model, variables, [x], train=False)
    hidden = model.apply(variables, x, False, capture_intermediates=True)[1]["intermediates"]["BatchNorm_0"]
    (seen,) = hidden["__call__"]
    np.testing.assert_allclose(moments["Dense_1"].gram, seen.T @ seen / 20, rtol=1e-4, atol=1e-5)
    assert list(collect_moments(model, variables, [x], train=False, rngs={"dropout": jax.random.key(2)})) == [
        *moments
    ]
    encoder = Encoder()
    encoding = encoder.init(jax.random.key(1), x, method="encode")
    for method in ("encode", encoder.encode, Encoder.encode):
        assert list(collect_moments(encoder, encoding, [x], method)) == ["Dense_0"]
    for batch, keywords, parts in (
        (x, {}, ["Trained cannot be called with such a batch: missing a required argument: 'train'"]),
        (x, {"training": False}, ["Trained cannot be called with such a batch", "options such as train=False"]),
        ((x, False), {}, ["a batch must hold arrays, not False: give it by keyword, such as train=False"]),
        (
            (x, x, x),
            {"train": False},
            ["Trained cannot be called with such a batch: multiple values for argument"],
        ),
        (("text", False), {}, ["a batch must hold arrays, not 'text'"]),
        ({"a": "text"}, {"train": False}, ["in batch must be an array of numbers, not str"]),
    ):
        with refusal(*parts):
            collect_moments(model, variables, [batch], **keywords)
    with refusal("Trained has no method 'decode'"):
        collect_moments(model, variables, [x], "decode")


def test_arguments_of_another_kind_are_named():
    x, model = jnp.ones((4, 3)), nn.Dense(2)
    variables = model.init(jax.random.key(0), x)
    with refusal("module must be a Flax Linen module, not dict; collect_recorded takes any model"):
        collect_moments(variables, model, [x])
    with refusal("'name' in variables must be an array of numbers, not str: leave it out"):
        collect_moments(model, variables | {"name": "head"}, [x])

    def forward(params, x, record, weight=None):
        for name, kernel in params.items():
            record(name, x @ kernel, weight)

    params = {"fc": jnp.ones((3, 2))}
    for arguments, part in (
        ((params, forward, [{"x": x}]), "forward must be a function of (params, record, ...), not dict"),
        ((forward, params | {"relu": jax.nn.tanh}, [{"x": x}]), "'relu' in params must be an array of numbers"),
        ((forward, params, [x]), "each batch must map names to arrays, such as {'x': x}, not float32[4, 3]"),
        ((forward, params, [{"x": "text"}]), "'x' in batch must be an array of numbers, not str"),
        ((lambda params, x, record: record("fc", x.sum()), params, [{"x": x}]), "must be [..., inputs], not one"),
        ((forward, params, [{"x": x, "weight": np.ones(3)}]), "the weight of its inputs must be [4], not [3]"),
        ((forward, params, [{"x": x}], None, {"head": params["fc"]}), "forward must record the same layers"),
    ):
        with refusal(part):
            collect_recorded(*arguments)


def test_inputs_and_params_in_the_other_byte_order_give_the_same():
    x = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    model = nn.Dense(2)
    variables = jax.tree.map(np.asarray, model.init(jax.random.key(0), x))
    swapped = jax.tree.map(lambda array: array.astype(">f4"), variables)
    found = [
        collect_moments(model, given, [x[:6].astype(kind), x[6:]])
        for given, kind in ((variables, "<f4"), (swapped, ">f4"))
    ]
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(one, other)
    moments = [
        with_inputs(no_inputs(3), x.astype(kind), np.ones(12, kind), x.astype(kind)) for kind in ("<f4", ">f4")
    ]
    for one, other in zip(*moments, strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_inputs_at_all_leave_finite_moments():
    nothing = with_inputs(no_inputs(3), jnp.ones((4, 3)), jnp.zeros(4))  # all padding
    some = with_inputs(nothing, jnp.ones((2, 3)))
    for moments, count in ((nothing, 0), (with_inputs(some, jnp.ones((0, 3))), 2)):
        assert moments.count == count
        np.testing.assert_array_equal(moments.gram, np.full((3, 3), float(count > 0)))
    recorded = collect_recorded(
        lambda params, x, weight, record: record("expert", x, weight),
        jnp.ones(1),
        [{"x": np.ones((4, 3)), "weight": np.zeros(4, bool)}] * 2,
    )
    np.testing.assert_array_equal(recorded["expert"].gram, np.zeros((3, 3)))


def test_params_without_their_outer_level_are_refused_in_a_line():
    x, model = jnp.ones((4, 3)), nn.Dense(2)
    with refusal("variables must be as module.init returns them: give {'params': params}"):
        collect_moments(model, model.init(jax.random.key(0), x)["params"], [x])
