"""Types of landscapes that fit together, results that can be exported, and fields whose shapes are stated."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import anneal, from_energy, tempering
from sa_jax.annealing.chain import init, run
from sa_jax.networks.energies import cross_entropy
from sa_jax.networks.mlp import Network
from sa_jax.pruning import scores
from sa_jax.types import exportable

ROOT = Path(__file__).parents[1]
LANDSCAPE = """
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sa_jax.types import Landscape, PyTree


class State(NamedTuple):
    position: jax.Array
    energy: jax.Array


def init(position: PyTree, data: tuple) -> State:
    return State(position, jnp.float32(0))


def draw(rng_key: jax.Array) -> jax.Array:
    return jax.random.bits(rng_key)


def propose(noise: jax.Array, state: State, temperature: jax.Array) -> tuple[int, jax.Array]:
    return 1, jnp.float32(0)


def delta({delta}) -> tuple[jax.Array, None]:
    return jnp.float32(0), None


def commit(state: State, move: {move}, pending: None, accepted: jax.Array) -> State:
    return state


def refresh(state: State, data: tuple) -> State:
    return state


landscape = Landscape(init, draw, propose, delta, commit, refresh)
"""
WHOLE = "state: State, move: int, data: tuple"


def errors_of(text, folder):
    """The rules that pyright finds broken in a file with this text."""
    path = folder / "landscape.py"
    path.write_text(text)
    settings = {"include": [path.name], "extraPaths": [str(ROOT)], "pythonVersion": "3.11"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    found = json.loads(done.stdout)["generalDiagnostics"]
    return [(one["rule"], text.splitlines()[one["range"]["start"]["line"]]) for one in found]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("delta", "move", "accepted"),
    [
        (WHOLE, "int", True),
        ("state: State, move: int", "int", False),  # no data
        ("state: State, move: str, data: tuple", "int", False),  # not what propose gives
        (WHOLE, "str", False),
    ],
)
def test_a_landscape_fits_together_or_is_rejected(delta, move, accepted, tmp_path):
    pytest.importorskip("pyright")
    found = errors_of(LANDSCAPE.format(delta=delta, move=move), tmp_path)
    if accepted:
        assert not found
    else:
        assert found and all(rule == "reportArgumentType" and "Landscape(" in line for rule, line in found)


PACKAGE = ROOT / "sa_jax"
ARRAY = re.compile(r"jax\.Array|np\.ndarray")
# Arrays by name, and functions of arrays, have shapes that their docstrings tell.
SEVERAL = re.compile(r"dict\[|Callable\[|Mapping\[")


@pytest.mark.slow
def test_a_shape_stands_beside_every_array_field():
    """Such as `energy: jax.Array  # float32 []`."""
    missing = []
    for path in sorted(PACKAGE.glob("**/*.py")):
        lines = path.read_text().splitlines()
        classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
        for field in (one for node in classes for one in node.body if isinstance(one, ast.AnnAssign)):
            hint, line = ast.unparse(field.annotation), lines[field.end_lineno - 1]
            if (
                ARRAY.search(hint)
                and not SEVERAL.search(hint)
                and not re.search(r"  # \w.* \[.*\]( each)?$", line)
            ):
                missing.append(f"{path.relative_to(ROOT)}:{field.lineno}: {line.strip()}")
    assert not missing, missing


def parabola(x):
    return (x - 3) ** 2


def hop(rng_key, x):
    return x + jax.random.normal(rng_key)


def search(rng_key):
    network = Network((jnp.arange(8.0).reshape(4, 2),), (None,))
    x, y = jnp.eye(4), jnp.arange(4, dtype=jnp.int32) % 2
    settings = cross_entropy(), "relu", scores.ScoreSettings(5), 0, 5
    return scores.run(rng_key, scores.init(network), network, x, y, 3, *settings)


BOWL = from_energy(parabola, hop)
EXPORTED = {
    "AnnealResult": lambda key: anneal(key, BOWL, 0.0, 1.0, 150, trace_every=50),
    "AnnealResult without a trace": lambda key: anneal(key, BOWL, 0.0, 1.0, 150),
    "AnnealState": lambda key: run(key, BOWL, init(BOWL, 0.0), 1.0, 0, 150)[0],
    "TemperResult": lambda key: tempering.temper(key, BOWL, 0.0, jnp.array([0.1, 1.0]), 200),
    "PopulationResult": lambda key: tempering.population_anneal(key, BOWL, jnp.zeros(4), 1.0, 200),
    "ScoreState": search,
}


@pytest.mark.parametrize("name", EXPORTED)
def test_functions_that_return_results_can_be_exported(name):
    pytest.importorskip("flatbuffers", reason="jax.export writes its files with flatbuffers")
    function, key = jax.jit(EXPORTED[name]), jax.random.key(0)
    saved = jax.export.export(function)(key).serialize()
    expected, loaded = function(key), jax.export.deserialize(saved).call(key)
    assert type(loaded).__name__ == name.split()[0]
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_a_chain_can_be_continued_by_an_exported_function():
    """Its state is an argument too."""
    pytest.importorskip("flatbuffers", reason="jax.export writes its files with flatbuffers")

    @jax.jit
    def chunk(key, state, first_step):
        return run(key, BOWL, state, 1.0, first_step, 100)[0]

    key, state = jax.random.key(0), init(BOWL, 0.0)
    loaded = jax.export.deserialize(jax.export.export(chunk)(key, state, jnp.int32(0)).serialize())
    state = loaded.call(key, loaded.call(key, state, jnp.int32(0)), jnp.int32(100))
    jax.tree.map(np.testing.assert_array_equal, state, run(key, BOWL, init(BOWL, 0.0), 1.0, 0, 200)[0])


def test_a_class_may_be_registered_again():
    """A notebook that loads a changed module again makes its classes again."""
    first = exportable(NamedTuple("Again", [("x", int)]))
    second = exportable(NamedTuple("Again", [("x", int)]))
    assert first is not second
