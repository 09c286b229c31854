"""One linear layer pruned: masks of every pattern, dense corrections, devices, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.networks.patterns import NM, Block, Columns, Layer, Rows, Unit, best, block_sums, expand, rule_of
from sa_jax.pruning import compact, linear, prune_linear, prune_linear_sharded, refit
from sa_jax.pruning.gram import damped, layer_error, relative_error
from sa_jax.pruning.moments import dense_correction, no_inputs, with_inputs
from tests.conftest import refusal
from tests.landscapes.layers import all_masks, energy_of, layer


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [Unit(0.5), 0.5, Block((2, 2), 0.5)], ids=str)
def test_a_layer_behind_pruned_ones_makes_up_for_them(pattern):
    keys = jax.random.split(jax.random.key(21), 4)
    x, weight = jax.random.normal(keys[0], (200, 16)), jax.random.normal(keys[1], (8, 16))
    dense = x @ (jnp.eye(16) + 0.3 * jax.random.normal(keys[2], (16, 16)))
    moments = with_inputs(no_inputs(16), x, None, dense)

    def error(new):
        return float(((x @ new.T - dense @ weight.T) ** 2).sum())

    told = dense_correction(moments, weight)
    found = [
        prune_linear(jax.random.key(0), weight, moments.gram, pattern, 20.0, dense_correction=linear)
        for linear in (None, told)
    ]
    assert error(jnp.where(found[1], weight, 0)) < 0.99 * error(jnp.where(found[0], weight, 0))
    refitted = [refit(weight, moments.gram, found[1], 1e-4, linear) for linear in (None, told)]
    assert error(refitted[1]) < min(error(refitted[0]), error(jnp.where(found[1], weight, 0)))


@pytest.mark.slow
def test_finds_the_optimum_of_rows_small_enough_to_try_all_masks():
    weight, gram = layer(24, 12, seed=5)
    found = np.asarray(prune_linear(jax.random.key(6), weight, gram, Unit(0.5), sweeps=40))
    every = all_masks((1, 12), 6, None)
    reached = 0
    for row, mask in zip(weight, found, strict=True):
        optimum = min(energy_of(row[None], gram, other) for other in every)
        reached += energy_of(row[None], gram, mask[None]) <= optimum * (1 + 1e-4)
    assert reached >= 22


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "share"),  # of the start's error that is left at most
    [
        (Unit(0.5), 0.8),
        (Layer(0.3), 0.8),
        (NM(2, 4), 0.8),
        (NM(1, 2), 0.9),
        (Block((4, 2), 0.5), 1.0),
        (Columns(0.25), 1.0),
        (Rows(0.5), 1.0),
        (Unit(1.0), 1.0),
    ],
    ids=str,
)
def test_every_pattern_keeps_what_it_says_and_loses_less_than_its_start(pattern, share):
    weight, gram = layer(12, 32, seed=7)
    pruned = jax.jit(prune_linear, static_argnums=(3, 4, 5))(jax.random.key(8), weight, gram, pattern, 4.0, 5)
    blocks, rule = block_sums(pattern, pruned.astype(jnp.float32)), rule_of(pattern)
    height, width = 12 // blocks.shape[0], 32 // blocks.shape[1]
    assert set(np.unique(blocks)) <= {0, height * width}
    num_kept = (np.asarray(blocks) > 0).reshape(-1, rule.set_size(blocks.shape)).sum(1)
    assert set(num_kept) == {rule.num_kept_of(rule.set_size(blocks.shape))}
    start = expand(best(pattern, block_sums(pattern, weight**2 * jnp.diag(gram))), weight.shape)
    before, after = energy_of(weight, gram, start), energy_of(weight, gram, pruned)
    assert after <= share * before * 1.0001


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_rows_anneal_alike_however_many_together():
    weight, gram = layer(10, 16, seed=9)
    one, all_at_once = (prune_linear(jax.random.key(1), weight, gram, Unit(0.5), 2.0, batch) for batch in (1, 10))
    assert np.array_equal(one, all_at_once)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("pattern", [Unit(0.5), Block((2, 1), 0.5), 0.5], ids=str)
def test_rows_spread_over_devices_give_the_same_mask(pattern):
    weight, gram = layer(10, 16, seed=9)
    key, told = jax.random.key(1), jnp.ones_like(weight)
    assert len(jax.devices()) > 1
    alone = prune_linear(key, weight, gram, pattern, 2.0, dense_correction=told)
    np.testing.assert_array_equal(prune_linear_sharded(key, weight, gram, pattern, 2.0, told), alone)


def test_rows_spread_over_devices_exchange_nothing():
    weight, gram = layer(8, 16)
    program = jax.jit(prune_linear_sharded, static_argnums=3)
    program = program.lower(jax.random.key(0), weight, gram, Unit(0.5)).compile().as_text()
    assert "while" in program and "s32" in program
    for exchange in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert exchange not in program


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_decides_nearly_as_well(dtype):
    weight, gram = layer(16, 64)
    gram /= jnp.abs(gram).max()
    halved, whole = (prune_linear(jax.random.key(0), weight, g, Unit(0.5)) for g in (gram.astype(dtype), gram))
    energies = [energy_of(weight, gram, mask) for mask in (halved, whole)]
    assert energies[0] < 1.03 * energies[1]


@pytest.mark.slow
def test_a_row_of_zeros_is_pruned_without_a_word():
    weight, gram = layer(3, 8)
    weight = weight.at[1].set(0)
    mask = prune_linear(jax.random.key(0), weight, gram, Unit(0.5))
    assert mask.sum(1).tolist() == [4, 4, 4]
    assert float(relative_error(weight, gram, jnp.where(mask, weight, 0))[1]) == 0


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"gram": np.eye(7)}, ["gram must be [8, 8]"]),
        ({"gram": np.triu(np.ones((8, 8)))}, ["gram must be symmetric"]),
        ({"gram": np.full((8, 8), np.nan)}, ["gram has entries that are not finite"]),
        ({"gram": -np.eye(8)}, ["negative entries on its diagonal"]),
        ({"weight": np.ones(8)}, ["weight must be [outputs, inputs]"]),
        ({"density": NM(3, 5)}, ["3:5 needs a multiple of 5 inputs, not 8"]),
        ({"density": Unit(0.01)}, ["density 0.01 keeps none of the 8"]),
        ({"density": 0.01}, ["density 0.01 keeps none of the 32"]),
        ({"density": Block((3, 3), 0.5)}, ["blocks of 3x3 do not divide a weight of 4 outputs"]),
        ({"density": "2:4"}, ["density must be a number or a pattern, not the text '2:4'", "NM(2, 4)"]),
        ({"density": 1.5}, ["density must be a finite number above 0 and at most 1, not 1.5"]),
        ({"density": None}, ["density must be a finite number above 0 and at most 1, not None"]),
        ({"sweeps": 0}, ["sweeps must be a finite number above 0, not 0"]),
        ({"dense_correction": np.ones((8, 4))}, ["dense_correction must be [4, 8] like the weight, not [8, 4]"]),
        ({"dense_correction": np.full((4, 8), np.inf)}, ["dense_correction has entries that are not finite"]),
        ({"weight": np.full((4, 8), 1e39)}, ["weight has entries that are not finite"]),  # in float32
        ({"weight": np.ones((4, 8)) + 1j}, ["weight must be real numbers, not complex128"]),
        ({"weight": [[1.0], [2.0, 3.0]]}, ["weight must be one array, but its rows have different lengths"]),
        ({"weight": {"kernel": np.ones((4, 8))}}, ["weight must be numbers, not object"]),
        ({"weight": np.eye(8), "gram": np.ones((4, 8))}, ["gram must be [8, 8] for this weight, not [4, 8]"]),
        *(
            ({"rng_key": key}, ["rng_key must be one key, such as jax.random.key(0)"])
            for key in (0, None, np.eye(8))
        ),
    ],
)
def test_refuses(changes, parts):
    arguments = {
        "rng_key": jax.random.key(0),
        "weight": np.ones((4, 8)),
        "gram": np.eye(8),
        "density": 0.5,
    } | changes
    with refusal(*parts):
        prune_linear(**arguments)
    if "density" in changes or "rng_key" in changes:
        with refusal(*parts):
            prune_linear_sharded(**arguments)


@pytest.mark.parametrize("density", [0.5, Unit(0.5), Columns(0.5)], ids=str)
def test_numbers_of_rows_are_whole(density):
    arguments = jax.random.key(0), np.ones((4, 8)), np.eye(8), density
    for wrong in (0, -1, 1.5, None, "2", True):
        with refusal("row_batch must be a whole number of at least 1, not"):
            prune_linear(*arguments, row_batch=wrong)
    for wrong in (-1, 1.5, None, 2**31):
        with refusal("first_row must be a whole number from 0 to 2147483647, not"):
            prune_linear(*arguments, first_row=wrong)


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.3, 0.05, 1.0])  # of 0.05 some pairs of rows keep nothing
def test_a_number_is_the_share_of_the_layer(density):
    weight, gram = layer(6, 16, seed=12)
    by_number, by_pattern = (prune_linear(jax.random.key(0), weight, gram, d) for d in (density, Layer(density)))
    assert int(by_number.sum()) == round(density * 96)
    np.testing.assert_array_equal(by_number, by_pattern)


@pytest.mark.slow
def test_what_is_left_of_columns_and_rows_computes_the_same():
    weight, gram = layer(8, 16)
    x = jax.random.normal(jax.random.key(9), (weight.shape[1],))
    for pattern in (Columns(0.5), Rows(0.5)):
        mask = prune_linear(jax.random.key(0), weight, gram, pattern, 1.0)
        small, outputs, inputs = compact(weight, mask)
        assert small.size == weight.size // 2
        whole = jnp.where(mask, weight, 0) @ x
        np.testing.assert_allclose(whole[outputs], small @ x[inputs], rtol=1e-5, atol=1e-5)
        assert not np.delete(np.asarray(whole), np.asarray(outputs)).any()


def dependent(inputs=16, dead=(3,), samples=5, seed=0):
    """A Gram matrix of few samples, with inputs that are always 0."""
    x = np.random.default_rng(seed).normal(size=(samples, inputs)).astype(np.float32)
    x[:, dead] = 0
    return x.T @ x


DEAD = {"never called": np.zeros((16, 16), np.float32), "few samples": dependent(), "one input": np.eye(16) * 0.0}
DEAD["one input"][2, 2] = 1.0


@pytest.mark.slow
@pytest.mark.parametrize("gram", DEAD.values(), ids=DEAD)
@pytest.mark.parametrize(
    "pattern", [Layer(0.5), Unit(0.5), NM(2, 4), Block((2, 2), 0.5), Columns(0.5), Rows(0.5)], ids=str
)
def test_layers_with_dead_inputs_keep_exactly_as_many(pattern, gram):
    weight, _ = layer(4, 16)
    mask = prune_linear(jax.random.key(0), weight, gram, pattern, 0.5)
    assert int(mask.sum()) == 32
    rule, blocks = rule_of(pattern), np.asarray(block_sums(pattern, mask.astype(jnp.float32)))
    num_kept = (blocks > 0).reshape(-1, rule.set_size(blocks.shape)).sum(1)
    assert set(num_kept) == {rule.num_kept_of(rule.set_size(blocks.shape))}
    pruned = jnp.where(mask, weight, 0.0)
    assert (
        np.isfinite(layer_error(weight, gram, pruned)) and np.isfinite(relative_error(weight, gram, pruned)).all()
    )


@pytest.mark.slow
def test_arrays_of_any_kind_give_the_same():
    weight, gram = (np.asarray(array) for array in layer(4, 8))
    mask = np.arange(32).reshape(4, 8) % 2 == 0
    key = jax.random.key(0)
    expected = None
    for kind in (
        np.asarray,
        lambda a: a.astype(">f4"),
        lambda a: a.astype(">f8"),
        np.asfortranarray,
        np.ndarray.tolist,
    ):
        w, g = kind(weight), kind(gram)
        pruned = jnp.where(mask, weight, 0.0)
        found = [
            prune_linear(key, w, g, Unit(0.5), 0.5, dense_correction=w),
            prune_linear_sharded(key, w, g, Unit(0.5), 0.5),
            refit(w, g, mask, dense_correction=w),
            damped(g, 0.1),
            *compact(w, mask),
        ]
        if not isinstance(w, list):
            found += [layer_error(w, g, pruned, w, g), relative_error(w, g, pruned)]
        expected = expected or found
        for one, other in zip(found, expected, strict=False):
            np.testing.assert_array_equal(one, other)


def test_without_jit_one_device_does_all_the_work(monkeypatch):
    weight, gram = layer(2, 4)
    monkeypatch.setattr(linear, "prune_linear", lambda *arguments, **more: "one device")
    with jax.disable_jit():
        assert prune_linear_sharded(jax.random.key(0), weight, gram, Unit(0.5)) == "one device"


@pytest.mark.slow
def test_rbg_keys_give_the_same_mask_on_any_number_of_devices():
    weight, gram = layer(8, 16)
    rng_key = jax.random.key(0, impl="rbg")
    alone, spread = (
        prune_linear_sharded(rng_key, weight, gram, Unit(0.5), devices=jax.devices()[:number]) for number in (1, 2)
    )
    np.testing.assert_array_equal(alone, spread)
