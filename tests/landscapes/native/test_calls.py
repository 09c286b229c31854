"""The native form of a proposal against XLA's, in every respect that a chain depends on."""

import operator
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from sa_jax import InputError, anneal
from sa_jax.annealing import chain
from sa_jax.landscapes import native
from sa_jax.landscapes.mlp import Weighted, chosen_backend, masked_mlp
from sa_jax.moves.base import Swap
from sa_jax.moves.informed import informed_swap
from sa_jax.moves.nudges import nudge
from sa_jax.moves.uniform import uniform_swap
from sa_jax.networks import masks, mlp
from sa_jax.networks.energies import cross_entropy, error_rate, kl_to_teacher, margin_loss
from sa_jax.testing import check_detailed_balance
from tests.landscapes.networks import TINY, TINY_DATA, enumerate_masks, make_network, make_samples

try:
    native.ready()
except native.Unavailable as reason:
    pytest.skip(f"no native code here: {reason}", allow_module_level=True)
if jax.default_backend() != "cpu":
    pytest.skip("native code is for CPUs", allow_module_level=True)

ENERGIES = {
    "cross_entropy": cross_entropy(3.0),
    "smoothed": cross_entropy(2.0, 0.2),
    "kl_to_teacher": kl_to_teacher(1.5),
    "margin_loss": margin_loss(0.7),
    "error_rate": error_rate(),
}
# Network, activation, energy, whether weights move, samples: fewer than a block, one block, several and a rest.
VARIANTS = [
    ("one layer", "relu", "cross_entropy", False, 9),
    ("two layers", "tanh", "smoothed", False, 256),
    ("two layers", "relu", "kl_to_teacher", True, 300),
    ("three, narrow", "gelu", "cross_entropy", True, 600),
    ("three, wide", "relu", "margin_loss", False, 131),
    ("three, wide", "tanh", "error_rate", True, 16),
    ("four, wide", "relu", "cross_entropy", False, 257),
    ("five", "gelu", "kl_to_teacher", False, 40),
    ("five", "relu", "cross_entropy", True, 513),
]


def make_problem(name, energy, samples):
    """A network, a mask, and the data of a landscape."""
    network = make_network(name, use_bias=len(name) % 2 == 0)
    x, y = make_samples(network, samples)
    targets = jax.nn.softmax(mlp.forward(network, x)).T if energy == "kl_to_teacher" else y
    mask = np.random.default_rng(3).permutation(network.total) < network.total // 2
    return network, mask, (x.T, targets)


@pytest.mark.parametrize(("name", "activation", "energy", "moves_weights", "samples"), VARIANTS)
def test_every_step_is_that_of_xla(name, activation, energy, moves_weights, samples):
    """Both make each step from the same state: the same decision, and all arrays equal up to rounding."""
    network, mask, data = make_problem(name, energy, samples)
    swaps = nudge(uniform_swap(), jnp.float32(0.3)) if moves_weights else uniform_swap()
    start = Weighted(mask, masks.flatten(network.kernels)) if moves_weights else mask
    make = partial(masked_mlp, network, swaps, ENERGIES[energy], activation, moves_weights)
    if energy == "error_rate":
        make = partial(make, guide=cross_entropy())
    both = [make(backend=backend) for backend in ("xla", "native")]

    @jax.jit
    def walk(start, data):
        def one(states, key):
            noise, log_u = both[0].draw(key), -jax.random.exponential(key)
            before = states[1]
            after = [chain.step(one, before, noise, log_u, jnp.float32(0.05), data) for one in both]
            return after, after

        state = chain.init(both[1], start, data)
        return jax.lax.scan(one, [state, state], jax.random.split(jax.random.key(0), 60))[1]

    steps = walk(start, data)
    accepted = np.asarray(steps[0].num_accepted)
    assert accepted[-1] > 3 and (np.diff(accepted) == 0).sum() > 3
    # The scratch is XLA's alone, and rounding may decide whether an equal energy is a new best.
    xla, own = (
        (walk.position, walk.energy, walk.swaps, walk.fan_in, walk.cache.outputs, num_accepted, num_not_finite)
        for walk, _, _, num_accepted, num_not_finite in steps
    )
    chex.assert_trees_all_close(own, xla, rtol=2e-4, atol=2e-5)


def annealed(network, mask, data, backend, swaps=None, moves_weights=False, energy=None, num_steps=2_000):
    """A jitted `anneal`."""
    start = Weighted(mask, masks.flatten(network.kernels)) if moves_weights else mask
    energy = energy or cross_entropy(3.0)
    landscape = masked_mlp(network, swaps or uniform_swap(), energy, moves_weights=moves_weights, backend=backend)

    @jax.jit
    def run(key, start, data):
        return anneal(key, landscape, start, 0.01, num_steps, data, trace_every=100)

    return run(jax.random.key(1), start, data)


@pytest.mark.slow
@pytest.mark.parametrize("moves_weights", [False, True])
def test_a_chain_visits_what_xla_visits(moves_weights):
    """With estimates, refreshes, notes of the best position; no proposal is within rounding of a decision here."""
    problem = make_problem("three, wide", "cross_entropy", 300)
    swaps = nudge(informed_swap(), jnp.float32(0.1)) if moves_weights else informed_swap()
    own, xla = (annealed(*problem, backend, swaps, moves_weights) for backend in ("native", "xla"))
    chex.assert_trees_all_close(own, xla, rtol=1e-3, atol=1e-4)
    assert own.num_accepted == xla.num_accepted > 100


@pytest.mark.slow
def test_visits_follow_the_boltzmann_distribution():
    landscape = masked_mlp(TINY, uniform_swap(), cross_entropy(2.0), backend="native")
    check_detailed_balance(jax.random.key(0), landscape, enumerate_masks(TINY.total, 4), TINY_DATA, 0.5)


def test_chunks_and_chains_change_no_bit():
    network, mask, data = make_problem("four, wide", "cross_entropy", 257)
    landscape = masked_mlp(network, uniform_swap(), cross_entropy(3.0), backend="native")
    advance = jax.jit(lambda key, state, first: chain.run(key, landscape, state, 0.01, first, 200, data)[0])
    whole = jax.jit(lambda key, state: chain.run(key, landscape, state, 0.01, 0, 400, data)[0])
    state = jax.jit(lambda mask: chain.init(landscape, mask, data))(mask)
    keys = jax.random.split(jax.random.key(2), 3)
    one_by_one = [whole(key, state) for key in keys]
    assert len({float(chain.walk.energy) for chain in one_by_one}) == 3
    in_chunks = advance(keys[0], advance(keys[0], state, 0), 200)
    chex.assert_trees_all_equal(in_chunks, one_by_one[0])
    together = jax.jit(jax.vmap(whole, (0, None)))(keys, state)
    chex.assert_trees_all_equal(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one))


def test_works_under_shard_map():
    network, mask, data = make_problem("three, narrow", "cross_entropy", 40)
    mesh = jax.make_mesh((1,), ("chains",), axis_types=(AxisType.Auto,))
    keys = jax.random.split(jax.random.key(2), 4)

    def one(key, mask):
        landscape = masked_mlp(network, uniform_swap(), cross_entropy(3.0), backend="native")
        return anneal(key, landscape, mask, 0.01, 300, data).best_energy

    expected = jnp.stack([jax.jit(one)(key, mask) for key in keys])
    spec = PartitionSpec("chains")
    over_mesh = jax.shard_map(
        lambda keys: jax.lax.map(lambda key: one(key, mask), keys), mesh=mesh, in_specs=spec, out_specs=spec
    )
    np.testing.assert_array_equal(jax.jit(over_mesh)(keys), expected)


@pytest.mark.parametrize("mapped", ["kernels", "mask", "inputs"])
@pytest.mark.parametrize("order", ["keys inside", "keys outside"])
def test_nested_vmap_gives_each_chain_its_own_arrays(mapped, order):
    """Keys are mapped by one vmap, and one of the other arrays by another, outside or inside of it."""
    network, mask, (inputs, labels) = make_problem("three, narrow", "cross_entropy", 40)
    arrays = {"kernels": network.kernels, "mask": jnp.asarray(mask), "inputs": inputs}
    other = {"kernels": lambda kernel: kernel[::-1], "mask": lambda mask: mask[::-1], "inputs": lambda x: 2 * x}
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, other[mapped](leaf)]), arrays[mapped])
    keys = jax.random.split(jax.random.key(2), 3)

    @jax.jit
    def one(key, value):
        now = arrays | {mapped: value}
        landscape = masked_mlp(
            network._replace(kernels=now["kernels"]), uniform_swap(), cross_entropy(3.0), backend="native"
        )
        return anneal(key, landscape, now["mask"], 0.01, 300, (now["inputs"], labels)).best_energy

    each = [jax.tree.map(operator.itemgetter(i), both) for i in range(2)]
    expected = [[one(key, value) for key in keys] for value in each]
    if order == "keys inside":
        found = jax.vmap(jax.vmap(one, (0, None)), (None, 0))(keys, both)
    else:
        found = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(keys, both).T
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("scale", "temperature"), [(jnp.nan, 1.0), (1.0, jnp.nan), (1.0, -1.0), (1.0, 0.0)])
def test_what_is_not_finite_is_rejected_and_counted(scale, temperature):
    network, mask, data = make_problem("two layers", "cross_entropy", 20)
    network = network._replace(kernels=tuple(kernel * scale for kernel in network.kernels))
    counts = []
    for backend in ("xla", "native"):
        landscape = masked_mlp(network, uniform_swap(), cross_entropy(3.0), backend=backend)
        run = jax.jit(
            lambda key, landscape=landscape: anneal(
                key, landscape, mask, lambda step: jnp.float32(temperature), 200, data
            )
        )
        result = run(jax.random.key(0))
        counts.append((int(result.num_accepted), int(result.num_not_finite)))
    assert counts[0] == counts[1]
    assert (counts[0][1] > 0) == (not temperature >= 0 or bool(jnp.isnan(scale)))


def test_other_types_and_shapes_are_not_read_past_their_end():
    network, mask, (inputs, _) = make_problem("two layers", "cross_entropy", 300)
    half = network._replace(kernels=tuple(kernel.astype(jnp.float16) for kernel in network.kernels))
    data = inputs, jnp.array([1])  # one label for all samples
    own, xla = (annealed(half, mask, data, backend, num_steps=300).best_energy for backend in ("native", "xla"))
    np.testing.assert_allclose(own, xla, rtol=1e-4)


@pytest.mark.parametrize("samples", [7, 100, 300, 1000])
def test_equal_numbers_of_errors_are_equal_energies(samples):
    """Greedy descent accepts ties, so the rounding of the mean must be that of XLA."""
    problem = make_problem("two layers", "error_rate", samples)
    own, xla = (annealed(*problem, backend, energy=error_rate(), num_steps=1_000) for backend in ("native", "xla"))
    np.testing.assert_array_equal(own.trace.energy, xla.trace.energy)


def test_a_logit_that_is_not_a_number_is_rejected():
    network, mask, data = make_problem("two layers", "margin_loss", 20)
    broken = network._replace(biases=(None, jnp.array([0.0, jnp.nan, 0.0])))
    result = annealed(broken, mask, data, "native", energy=margin_loss(1.0), num_steps=200)
    assert result.num_accepted < 200 and result.num_not_finite > 0


def test_a_proposal_to_stay_changes_nothing():
    network, mask, data = make_problem("three, wide", "cross_entropy", 20)
    landscape = masked_mlp(network, uniform_swap(), cross_entropy(3.0), backend="native")
    state = landscape.init(mask, data)
    branch = jnp.int32(np.flatnonzero(mask)[0])
    stays = Swap(branch, branch, jnp.zeros(2, jnp.int32))
    rule = jnp.float32(-jnp.inf), jnp.float32(-jnp.inf), jnp.float32(1)
    settled, accepted, change = jax.jit(landscape.settle)(state, stays, *rule, data)
    assert not accepted and change == 0
    chex.assert_trees_all_equal(settled, state)


def test_weights_that_must_not_move_are_refused():
    network, mask, data = make_problem("two layers", "cross_entropy", 20)
    landscape = masked_mlp(network, nudge(uniform_swap(), jnp.float32(1)), cross_entropy(), backend="native")
    with pytest.raises(InputError, match="need masked_mlp"):
        anneal(jax.random.key(0), landscape, mask, 1.0, 100, data)


def test_backends_are_chosen():
    assert (
        chosen_backend("auto", cross_entropy(), "relu")
        == chosen_backend("native", error_rate(), "tanh")
        == "native"
    )
    assert chosen_backend("xla", cross_entropy(), "relu") == "xla"

    def own(logits, labels, axis=-1):
        return logits.mean()

    assert chosen_backend("auto", own, "relu") == "xla"
    with pytest.raises(InputError, match="no native code for the energy"):
        chosen_backend("native", own, "relu")
    with pytest.raises(InputError, match="backend must be one of"):
        chosen_backend("c", cross_entropy(), "relu")
