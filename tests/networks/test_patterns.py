"""Patterns as values: validated, hashable, told apart, and what they allow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.networks import patterns
from sa_jax.networks.patterns import NM, Block, Columns, Layer, Rows, Rule, Unit
from tests.conftest import refusal

SHARES = (Unit, Layer, Columns, Rows)
ALL = (Unit(0.5), Layer(0.5), NM(2, 4), Block((4, 4), 0.5), Columns(0.5), Rows(0.5))


def test_patterns_are_told_apart_by_their_kind_and_their_numbers():
    assert len({*ALL, *ALL}) == len(ALL)
    assert Unit(0.5) != Layer(0.5) and Unit(0.5) != Unit(0.25) and NM(2, 4) != (2, 4)
    assert Unit(np.float32(0.5)) == Unit(jnp.float32(0.5)) == Unit(0.5) and Unit(1) == Unit(1.0)
    assert Block([4, 4], 0.5) == Block((4, 4), 0.5) and NM(np.int64(2), 4) == NM(2, 4)
    assert (
        len({str(pattern) for pattern in ALL}) == len({patterns.rule_of(pattern) for pattern in ALL}) == len(ALL)
    )


def test_patterns_are_static_under_jit():
    @jax.jit
    def kept(scores):
        return jnp.stack([patterns.best(pattern, scores).sum(1) for pattern in (Unit(0.5), NM(1, 4))])

    traces = []
    counted = jax.jit(lambda pattern, x: traces.append(pattern) or x, static_argnums=0)
    assert kept(jnp.arange(8.0).reshape(2, 4)).tolist() == [[2, 2], [1, 1]]
    for pattern in (Unit(0.5), Layer(0.5), Unit(0.5)):
        counted(pattern, 1.0)
    assert traces == [Unit(0.5), Layer(0.5)]


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        *(((lambda one=one: one(0)), ["density must be a finite number above 0", "not 0"]) for one in SHARES),
        (lambda: Unit(1.1), ["density must be a finite number above 0 and at most 1, not 1.1"]),
        (lambda: Unit(float("nan")), ["density", "not nan"]),
        (lambda: Unit(True), ["density", "not True"]),
        (lambda: Layer("0.5"), ["density", "not '0.5'"]),
        (lambda: NM(5, 4), ["kept must be a whole number from 1 to 4, not 5"]),
        (lambda: NM(0, 4), ["kept must be a whole number from 1 to 4, not 0"]),
        (lambda: NM(2, 4.0), ["group must be a whole number of at least 1, not 4.0"]),
        (lambda: Block(4, 0.5), ["the shape of a block must be a pair such as (4, 4), not 4"]),
        (lambda: Block((4, 0), 0.5), ["the width of a block must be a whole number of at least 1, not 0"]),
        (lambda: Block((4, 4), 2), ["density", "not 2"]),
    ],
)
def test_bad_numbers_are_refused_on_construction(make, parts):
    with refusal(*parts):
        make()


def test_a_number_stands_for_the_share_of_the_layer_and_text_for_nothing():
    assert patterns.of_layer(0.5) == Layer(0.5)
    assert all(patterns.of_layer(pattern) is pattern for pattern in ALL)
    with refusal("density must be a number or a pattern, not the text '2:4': write Unit(0.5)", "NM(2, 4)"):
        patterns.of_layer("2:4")
    with refusal("pattern must be one of sa_jax.patterns, such as Unit(0.5)", "not 0.5"):
        patterns.rule_of(0.5)  # pyright: ignore[reportArgumentType]


def test_what_each_pattern_keeps_of_a_weight():
    scores = jnp.array([[8.0, 7.0, 6.0, 5.0], [1.0, 2.0, 3.0, 4.0]])
    kept = {
        Unit(0.5): [[1, 1, 0, 0], [0, 0, 1, 1]],
        Layer(0.5): [[1, 1, 1, 1], [0, 0, 0, 0]],
        NM(1, 2): [[1, 0, 1, 0], [0, 1, 0, 1]],
        Block((1, 2), 0.5): [[1, 1, 0, 0], [0, 0, 1, 1]],
        Block((2, 2), 0.5): [[1, 1, 0, 0], [1, 1, 0, 0]],
        Columns(0.25): [[1, 0, 0, 0], [1, 0, 0, 0]],
        Rows(0.5): [[1, 1, 1, 1], [0, 0, 0, 0]],
    }
    for pattern, expected in kept.items():
        blocks = patterns.best(pattern, patterns.block_sums(pattern, scores))
        assert patterns.expand(blocks, (2, 4)).astype(int).tolist() == expected, pattern


def test_a_rule_may_give_a_count_for_the_whole_layer():
    rule = Rule(num_kept=3, whole_layer=True)
    assert rule.blocks((2, 4)) == (2, 4)
    assert rule.num_kept_of(rule.set_size((2, 4))) == 3


def test_slices_and_channels_are_weights_and_columns_of_other_layers():
    assert patterns.rule_of(patterns.Kernels(0.5)) == patterns.rule_of(Unit(0.5))
    assert patterns.rule_of(patterns.Channels(0.5)) == patterns.rule_of(Columns(0.5))
    with refusal("density must be a finite number above 0"):
        patterns.Kernels(0.0)
