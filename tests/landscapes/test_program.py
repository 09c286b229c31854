"""What the compiled program does in every step, read from it: no copies of what is carried, no recompilation."""

import ast
import itertools
import operator
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax import landscapes
from sa_jax.annealing.chain import init, run
from sa_jax.landscapes.mlp import Weighted, chosen_backend, masked_mlp
from sa_jax.moves.informed import informed_swap
from sa_jax.moves.nudges import nudge
from sa_jax.moves.saliency import saliency_swap
from sa_jax.moves.uniform import uniform_swap
from sa_jax.networks import mlp
from sa_jax.networks.energies import cross_entropy

SAMPLES = 150
# Widths that no two arrays share, so that a shape names what it belongs to.
SIZES = {
    "two layers": [61, 47, 7],
    "three, narrow": [61, 47, 23, 7],
    "three, wide": [61, 47, 43, 7],
    "five": [61, 47, 43, 41, 37, 7],
}
DATA = jnp.ones((61, SAMPLES)), jnp.zeros(SAMPLES, jnp.int32)
# The program of users, not the one that is quick to compile.
FULLY = {"xla_cpu_use_fusion_emitters": True, "xla_backend_optimization_level": 3}


def program(sizes, make_swaps, moves_weights, backend):
    """The compiled text of a chunk of steps as `runner` compiles it, and the sizes of what its state carries."""
    kernels = tuple(jnp.ones(shape) for shape in itertools.pairwise(sizes))
    network = mlp.Network(kernels, (None,) * len(kernels))

    def landscape(network):
        how = {"moves_weights": moves_weights, "backend": backend}
        return masked_mlp(network, make_swaps(network), cross_entropy(), **how)

    def chunk(keys, network, states, data):
        def one_chain(chain):
            return run(chain[0], landscape(network), chain[1], lambda step: 0.01, 0, 1_000, data)[0]

        return jax.lax.map(one_chain, (keys, states))

    mask = np.arange(network.total) % 10 == 0
    start = Weighted(mask, np.ones(network.total, np.float32)) if moves_weights else mask
    state = jax.eval_shape(lambda: init(landscape(network), start, DATA))
    states = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), state)
    keys = jax.random.split(jax.random.key(2))
    compiled = jax.jit(chunk, donate_argnums=2).lower(keys, network, states, DATA).compile(FULLY)
    return compiled.as_text(), [leaf for leaf in jax.tree.leaves(state) if leaf.ndim and leaf.size > 100]


def copies(text):
    """Shapes of all copies, but those inside of fusions, which are loops over elements, and at the very start."""
    computation, found = "", []
    for line in text.splitlines():
        if header := re.match(r"^(ENTRY )?%?([\w.\-]+) .*\{$", line):
            computation = header[1] or header[2]
        copied = re.search(r"= (\w+\[[\d,]*\])\S* copy\(", line)
        if copied and computation != "ENTRY " and not computation.startswith("fused"):
            found.append(copied[1])
    return found


def shape_text(leaf):
    kind = {"bool": "pred", "float32": "f32", "int32": "s32", "int16": "s16"}[leaf.dtype.name]
    return f"{kind}[{','.join(map(str, leaf.shape))}]"


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads what XLA makes of it for a CPU")
@pytest.mark.parametrize(
    ("name", "move", "backend"),
    [
        *itertools.product(SIZES, ["saliency"], ["xla"]),
        *itertools.product(["three, narrow"], ["uniform", "informed", "nudge"], ["xla"]),
        ("three, narrow", "uniform", "native"),
        ("three, wide", "nudge", "native"),
        ("five", "saliency", "native"),
    ],
)
def test_no_step_copies_what_it_carries(name, move, backend):
    if backend == "native" and chosen_backend("auto", cross_entropy(), "relu") != "native":
        pytest.skip("no native code here")

    def make_swaps(network):
        if move == "informed":
            return informed_swap()
        if move == "nudge":
            return nudge(informed_swap(), jnp.ones(network.total))
        return uniform_swap() if move == "uniform" else saliency_swap(mlp.saliency(network, DATA[0].T))

    text, carried = program(SIZES[name], make_swaps, move == "nudge", backend)
    assert text.count(" while(") > 2
    logits = f"f32[7,{SAMPLES}]"
    mask = f"pred[{sum(itertools.starmap(operator.mul, itertools.pairwise(SIZES[name])))}]"
    forbidden = {shape_text(leaf) for leaf in carried} - {logits, mask}
    assert len(forbidden) >= 2
    found = copies(text)
    assert not forbidden & set(found), found
    # The new logits begin as the old, which a rejection keeps; the best mask is copied when there is a new one,
    # from a step or a refresh.
    assert found.count(logits) <= 1
    assert found.count(mask) <= 2


def test_copies_are_seen():
    """The reader itself: a step that reads a row after it has written it makes XLA copy the array."""

    def step(carry, row):
        array, total = carry
        written = array.at[row].add(1.0)
        return (written, total + array[row].sum() * written.sum()), None

    def loop(array, rows):
        return jax.lax.scan(step, (array, 0.0), rows)[0]

    text = jax.jit(loop, donate_argnums=0).lower(jnp.ones((61, 43)), jnp.arange(30)).compile(FULLY).as_text()
    if jax.default_backend() == "cpu":
        assert "f32[61,43]" in copies(text)


def test_no_function_is_longer_than_60_lines():
    folder, long = Path(landscapes.__file__).parent, []
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
                long.append(f"{path.relative_to(folder)}: {node.name}")
    assert not long, long


def test_a_chunk_is_traced_once():
    network = mlp.Network((jnp.ones((5, 4)), jnp.ones((4, 3))), (None, None))
    data = jnp.ones((5, 20)), jnp.zeros(20, jnp.int32)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def chunk(key, state, first_step, temperature):
        landscape = masked_mlp(network, uniform_swap(), cross_entropy())
        return run(key, landscape, state, lambda step: temperature, first_step, 200, data)[0]

    landscape = masked_mlp(network, uniform_swap(), cross_entropy())
    state = jax.jit(lambda mask: init(landscape, mask, data))(jnp.arange(32) < 9)
    for number in range(3):
        state = chunk(jax.random.key(number), state, jnp.int32(200 * number), jnp.float32(number))
    assert int(state.best.sum()) == 9
