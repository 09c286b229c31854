"""The moments of layers' inputs, in parts, with padding, and of a Flax model's dense layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.pruning.moments import collect_moments, no_inputs, with_inputs
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
    with refusal("found no linear layer (such as nn.Dense) in the model"):
        collect_moments(nn.LayerNorm(), nn.LayerNorm().init(jax.random.key(0), x), [x])
