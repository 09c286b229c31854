"""The order of layers: from numbers in names, else from shapes, else refused."""

import itertools

import pytest

from sa_jax.networks import layer_order
from tests.conftest import refusal


@pytest.mark.parametrize(
    ("shapes", "orders"),
    [
        ({"Dense_10": (3, 3), "Dense_2": (3, 3)}, [["Dense_2", "Dense_10"]]),
        ({"dense_1": (3, 3), "dense": (3, 3)}, [["dense", "dense_1"]]),
        # Numbered from the last layer on: the shapes decide.
        ({"fc1": (3, 4), "fc2": (2, 3)}, [["fc2", "fc1"]]),
        ({"a": (2, 3), "b": (4, 5)}, []),
        ({"a": (3, 3), "b": (3, 3), "c": (3, 3)}, [["a", "b", "c"], ["a", "c", "b"]]),  # two of six
    ],
)
def test_orders(shapes, orders):
    assert layer_order.orders(shapes) == orders


def test_numbers_and_shapes_alone():
    shapes = {"fc1": (3, 4), "fc2": (2, 3)}
    assert layer_order.orders_by_number(shapes) == []
    assert layer_order.orders_by_shape(shapes) == [["fc2", "fc1"]]
    assert len(layer_order.orders_by_shape({"fc1": (3, 3), "fc2": (3, 3)})) == 2


def test_too_many_orders_are_given_up():
    names = ["".join(pair) for pair in itertools.product("abcdefgh", repeat=2)]
    hopeless = {name: (3, 3) for name in names[:-1]} | {names[-1]: (4, 5)}
    with refusal("too many orders to try: number them in network order"):
        layer_order.orders(hopeless)


def test_a_misfit_is_named():
    shapes = {"b": (4, 2), "a": (3, 4), "c": (5, 1)}
    assert layer_order.first_misfit(["a", "b"], shapes) is None
    assert layer_order.first_misfit(["a", "b", "c"], shapes) == ("b", "c")
    assert "layer 'c' takes 5 inputs, but the layer before it has 2 outputs" in layer_order.misfit(shapes, {})
    assert "in the order given: a, c, b" in layer_order.misfit(shapes, {}, ["a", "c", "b"])
    assert layer_order.misfit(shapes, {"a": 3}) == "layer 'a': bias [3] does not fit kernel [3, 4]"


def test_names_are_sorted_by_their_numbers():
    names = ["fc10.2", "fc2", "fc", "fc10.10", f"fc{'9' * 5_000}"]
    assert sorted(names, key=layer_order.natural) == ["fc", "fc2", "fc10.2", "fc10.10", f"fc{'9' * 5_000}"]
