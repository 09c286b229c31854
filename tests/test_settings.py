"""Every public function under the settings that JAX codebases use; test_docs does so with the pages' examples."""

import inspect
import itertools
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sa_jax
from sa_jax import baselines, export, files, moves, pruning, tempering, testing
from sa_jax.annealing import chain
from sa_jax.baselines import linear as linear_methods
from sa_jax.baselines import trained
from sa_jax.baselines.relaxed import alps, sparse_fw
from sa_jax.baselines.swaps import sparse_swaps
from sa_jax.landscapes import full
from sa_jax.landscapes import linear as linear_landscapes
from sa_jax.landscapes.cnn import masked_cnn
from sa_jax.landscapes.mlp import Weighted, chosen_backend, masked_mlp
from sa_jax.networks import cnn, energies, masks, mlp, pretrain, slopes
from sa_jax.networks.patterns import NM, Block, Columns, Layer, Rows, Unit
from tests.settings import SETTINGS, new_key

NUM_STEPS = 4  # fewer than a block of steps: without jit, each may take a second
RANDOM = np.random.default_rng(0)
# float64, as NumPy makes them. All kernels are square, so that no check of shapes tells one from another.
X = RANDOM.normal(size=(30, 4))
Y = RANDOM.integers(0, 4, 30)
PARAMS = {f"Dense_{layer}": {"kernel": RANDOM.normal(size=(4, 4)), "bias": np.zeros(4)} for layer in range(3)}
WEIGHT, GRAM = RANDOM.normal(size=(4, 8)), np.cov(RANDOM.normal(size=(8, 50)))
GRID = np.array(list(itertools.product((0, 1), repeat=3)), bool)
PATTERNS = Unit(0.5), Layer(0.5), NM(1, 2), Block((2, 2), 0.5), Columns(0.5), Rows(0.5)
CASES = {}


def case(*names):
    """A function of a maker of keys; each of the names is a public function that it calls."""

    def add(function):
        for name in names:
            CASES[name] = function
        return function

    return add


class Model(nn.Module):
    """A model that is not a multilayer perceptron."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.relu(nn.LayerNorm()(nn.Dense(6)(x))))


def network():
    return mlp.network_of(PARAMS)[1]


def flip(rng_key, position):
    place = jax.random.randint(rng_key, (), 0, 3)
    return position.at[place].set(~position[place])


def ising(couplings=(1.0, -0.5, 0.25)):
    def energy(position, scale):
        spins = jnp.where(position, 1.0, -1.0)
        return (scale * jnp.asarray(couplings)).astype(spins.dtype) @ (spins * jnp.roll(spins, 1))

    return sa_jax.from_energy(energy, flip)


SCALE = (np.float64(2.0),)


@case("anneal", "from_energy", "constant_schedule")
def anneal(key):
    start = jnp.zeros(3, bool)
    schedule = sa_jax.constant_schedule(0.5)
    return sa_jax.anneal(key(0), ising(), start, schedule, NUM_STEPS, SCALE, trace_every=2)


@case("geometric_schedule", "linear_schedule", "cosine_schedule", "logarithmic_schedule")
def schedules(key):
    made = [
        make(1.0, 0.1, NUM_STEPS)
        for make in (sa_jax.geometric_schedule, sa_jax.linear_schedule, sa_jax.cosine_schedule)
    ]
    made.append(sa_jax.logarithmic_schedule(1.0))
    start = jnp.zeros(3, bool)
    return [
        (schedule(7), schedule(jnp.int32(7)), sa_jax.anneal(key(0), ising(), start, schedule, NUM_STEPS, SCALE))
        for schedule in made
    ]


@case("calibrate")
def calibrate(key):
    start, end = sa_jax.calibrate(key(0), ising(), jnp.zeros(3, bool), SCALE)
    return sa_jax.geometric_schedule(start, end, NUM_STEPS)(7)


@case("chain.init", "chain.run")
def run(key):
    state = chain.init(ising(), jnp.zeros(3, bool), SCALE)
    return chain.run(key(0), ising(), state, sa_jax.constant_schedule(0.5), 0, NUM_STEPS, SCALE)


@case("tempering.temper")
def temper(key):
    ladder = np.geomspace(0.1, 2, 4)
    return tempering.temper(key(0), ising(), jnp.zeros(3, bool), ladder, NUM_STEPS, SCALE, adapt_steps=NUM_STEPS)


@case("tempering.population_anneal")
def population(key):
    schedule = sa_jax.geometric_schedule(1.0, 0.1, NUM_STEPS)
    return tempering.population_anneal(key(0), ising(), jnp.zeros((4, 3), bool), schedule, NUM_STEPS, SCALE)


@case("testing.check_detailed_balance", *(f"testing.{name}" for name in (
    "energies_of", "boltzmann", "count_proposals", "check_energy_changes", "check_proposal_ratios", "visits",
    "check_boltzmann",
)))  # fmt: skip
def detailed_balance(key):
    return testing.check_detailed_balance(key(0), ising(), GRID, SCALE, temperature=2.0, num_draws=1_000)


def pruned(key, **options):
    found, result = sa_jax.prune(key(0), PARAMS, X, Y, num_steps=NUM_STEPS, **options)
    return found, result, mlp.apply(PARAMS, found, jnp.asarray(X))


for move in pruning.options.MOVES:
    case(f"prune:{move}", "prune")(lambda key, move=move: pruned(key, density=0.25, move=move))
for start in pruning.options.STARTS:
    case(f"prune:{start}")(lambda key, start=start: pruned(key, density=0.25, move="uniform", start=start))
case("prune:gradient")(lambda key: pruned(key, density=0.25, estimates="gradient"))
# With temperatures given, none are calibrated on a thousand swaps: minutes without jit.
case("prune:cold")(lambda key: pruned(key, density=0.25, temperature_start=0.1))
for energy in pruning.options.ENERGIES:
    case(f"prune:{energy}")(lambda key, energy=energy: pruned(key, density=0.25, energy=energy))
for name in pruning.options.SCHEDULES:
    case(f"prune:{name}")(lambda key, name=name: pruned(key, density=0.25, schedule=name, activation="gelu"))
for pattern in PATTERNS[:-1]:
    case(f"prune:{pattern}")(lambda key, pattern=pattern: pruned(key, density=pattern, activation="tanh"))


for estimates in slopes.ESTIMATES:

    @case(f"pruning.score_search:{estimates}", "pruning.score_search", "pruning.calibrated_search")
    def score_search(key, estimates=estimates):
        x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.int32)
        options = pruning.Options(energy="kl_to_teacher", estimates=estimates)
        scale, targets = pruning.calibrated_search(network(), x, y, 12, options)
        energy = pruning.guiding_energy(scale, options)
        settings = pruning.ScoreSettings(NUM_STEPS, estimates)
        return (
            pruning.score_search(
                key(0), network(), X, Y, 12, NUM_STEPS, energies.cross_entropy(), "tanh", estimates, 1.0
            ),
            pruning.found_mask(key(0), network(), x, targets, 12, energy, "relu", settings),
        )


@case("slopes.forward_slopes", "slopes.gradient_slopes")
def slopes_of_units(key):
    del key
    x, act = jnp.asarray(X.T, jnp.float32), jnp.tanh
    outputs = slopes.layer_outputs(network(), x, act)
    arguments = network(), outputs, [jnp.asarray(Y, jnp.int32)], energies.cross_entropy(), act
    losses = slopes.sample_losses(energies.cross_entropy(), outputs[-1], [jnp.asarray(Y, jnp.int32)])
    return losses, slopes.forward_slopes(*arguments, [30, 20, 10]), slopes.gradient_slopes(*arguments)


@case("prune_kernels", "apply_masks")
def kernels(key):
    model = Model()
    params = model.init(key(1), jnp.asarray(X, jnp.float32))
    found, result = sa_jax.prune_kernels(
        key(0), model.apply, params, X, Y, density=0.5, num_steps=NUM_STEPS, temperature_start=0.1
    )
    return found, result, sa_jax.apply_masks(params, found)


@case("collect_moments", "prune_layers", "refit", "pruning.dense_correction", "pruning.allocate")
def layers(key):
    model = Model()
    params = model.init(key(1), jnp.asarray(X, jnp.float32))
    moments = sa_jax.collect_moments(model, params, [X[:10], X[10:]])
    found = sa_jax.prune_layers(key(0), params, moments, density=Unit(0.5), sweeps=1)
    weights = {name: params["params"][name]["kernel"].T for name in moments}
    kept = {name: found["params"][name]["kernel"].T for name in moments}
    refitted = [sa_jax.refit(weights[name], moment.gram, kept[name]) for name, moment in moments.items()]
    grams = {name: moment.gram for name, moment in moments.items()}
    return found, refitted, pruning.allocate(weights, grams, 0.5)


@case("pruning.collect_recorded")
def recorded(key):
    del key

    def forward(params, x, record):
        record("first", x)
        return x @ params

    params = jnp.asarray(WEIGHT[:, :4], jnp.float32)
    inputs = jnp.asarray(X, jnp.float32)
    moments = pruning.collect_recorded(forward, params, [{"x": inputs}, {"x": inputs}], dense=2 * params)
    return moments, pruning.dense_correction(moments["first"], params.T)


for pattern in PATTERNS:
    case(f"prune_linear:{pattern}", "prune_linear")(
        lambda key, pattern=pattern: sa_jax.prune_linear(key(0), WEIGHT, GRAM, pattern, sweeps=1)
    )
    case(f"linear.magnitude:{pattern}", "linear.magnitude", "linear.wanda", "linear.ria")(
        lambda key, pattern=pattern: (
            linear_methods.magnitude(WEIGHT, pattern),
            linear_methods.wanda(WEIGHT, GRAM, pattern),
            linear_methods.ria(WEIGHT, GRAM, pattern),
        )
    )
for pattern in PATTERNS[1:3]:
    case(f"linear.sparsegpt:{pattern}", "linear.sparsegpt")(
        lambda key, pattern=pattern: linear_methods.sparsegpt(WEIGHT, GRAM, pattern)
    )
case("linear.dsnot")(lambda key: linear_methods.dsnot(WEIGHT, GRAM, X.mean(0)[[0, 1, 2, 3] * 2], Unit(0.5)))
case("swaps.sparse_swaps")(lambda key: sparse_swaps(WEIGHT, GRAM, Unit(0.5), row_batch=3))
case("relaxed.sparse_fw")(lambda key: sparse_fw(WEIGHT, GRAM, Unit(0.5), num_steps=9))
case("relaxed.alps")(lambda key: alps(WEIGHT, GRAM, Unit(0.5)))


@case("pruning.prune_linear_sharded", "pruning.compact")
def sharded(key):
    mask = pruning.prune_linear_sharded(key(0), WEIGHT, GRAM, Unit(0.5), sweeps=1)
    return mask, pruning.compact(jnp.asarray(WEIGHT), mask)


@case(
    "landscapes.linear_rows", "landscapes.heat_bath_rows", "landscapes.pruning_errors", "moves.uniform_swap",
    "moves.swap_within",
)  # fmt: skip
def linear_chains(key):
    weight, gram = (jnp.asarray(array, jnp.float32) for array in (WEIGHT, GRAM))
    start = masks.by_score(jnp.abs(weight).ravel(), 16).reshape(weight.shape)
    found = [linear_landscapes.pruning_errors(weight, gram)]
    for landscape in (
        linear_landscapes.heat_bath_rows(weight, gram),
        linear_landscapes.linear_rows(weight, gram, moves.uniform_swap()),
        linear_landscapes.linear_rows(weight, gram, moves.swap_within(np.arange(32) // 8)),
    ):
        found.append(sa_jax.anneal(key(0), landscape, start, 0.5, NUM_STEPS))
    return found


SWAPS = {
    "uniform_swap": moves.uniform_swap,
    "informed_swap": moves.informed_swap,
    "saliency_swap": lambda: moves.saliency_swap(jnp.abs(masks.flatten(network().kernels))),
    "nudge": lambda: moves.nudge(moves.uniform_swap(), jnp.float32(0.1)),
}
for name, swaps in SWAPS.items():

    @case(f"landscapes.masked_mlp:{name}", "landscapes.masked_mlp", f"moves.{name}")
    def incremental(key, swaps=swaps, moves_weights=name == "nudge"):
        return annealed(key, network(), swaps(), moves_weights)


def annealed(key, network, swaps, moves_weights=False, estimates="forward", backend="xla"):
    how = moves_weights, estimates, None, backend
    landscape = masked_mlp(network, swaps, energies.cross_entropy(), "tanh", *how)
    mask = masks.random(key(1), network.total, network.total // 4)
    start = Weighted(mask, masks.flatten(network.kernels)) if moves_weights else mask
    return sa_jax.anneal(key(0), landscape, start, 0.1, NUM_STEPS, (X.T.astype(np.float32), Y))


case("landscapes.masked_mlp:gradient")(
    lambda key: annealed(key, network(), moves.informed_swap(), estimates="gradient")
)


case("landscapes.masked_mlp:native", "landscapes.chosen_backend")(
    lambda key: annealed(
        key, network(), SWAPS["nudge"](), True, backend=chosen_backend("auto", energies.error_rate(), "relu")
    )
)


for hidden in (), (4,), (40, 40), (40, 4, 4):  # a path for each kind of network

    @case(f"landscapes.masked_mlp:{hidden}")
    def path(key, hidden=hidden):
        model = mlp.MLP([*hidden, 4])
        params = model.init(key(1), jnp.asarray(X, jnp.float32))
        return annealed(key, mlp.network_of(params)[1], moves.uniform_swap())


@case("landscapes.masked_cnn", "cnn.forward", "cnn.samples_last", "cnn.network_of")
def convolutional(key):
    architecture = cnn.Architecture((4, 4, 1), (cnn.Convolution(2, (2, 2), pool=cnn.Pool("max")),), (4,))
    images = np.repeat(X, 4, 1)
    params = cnn.CNN(architecture).init(key(1), jnp.asarray(images, jnp.float32))
    network = cnn.network_of(params, architecture)
    landscape = masked_cnn(network, moves.uniform_swap(), energies.cross_entropy())
    mask = masks.random(key(1), network.total, network.total // 2)
    data = cnn.samples_last(images, architecture), Y
    return cnn.forward(network, jnp.asarray(images, jnp.float32)), sa_jax.anneal(
        key(0), landscape, mask, 0.1, NUM_STEPS, data
    )


for name, make in {
    "cross_entropy": lambda: energies.cross_entropy(2.0, 0.1),
    "kl_to_teacher": lambda: energies.kl_to_teacher(2.0),
    "margin_loss": lambda: energies.margin_loss(0.5),
    "error_rate": energies.error_rate,
}.items():

    @case(f"energies.{name}", "landscapes.full_mlp", "moves.move_fn")
    def energy(key, make=make, teacher=name == "kl_to_teacher"):
        swaps = moves.uniform_swap()
        landscape = full.full_mlp(network(), swaps, make())
        mask = masks.random(key(1), network().total, 12)
        inputs = jnp.asarray(X.T, jnp.float32)
        data = inputs, jax.nn.softmax(inputs, 0) if teacher else Y
        return sa_jax.anneal(key(0), landscape, (mask, swaps.init(mask)), 0.1, NUM_STEPS, data)


BUDGET = baselines.Budget(num_samples=20, num_evaluations=40, search_samples=20, epochs=1, score_steps=NUM_STEPS)
for method in baselines.METHODS:
    if method != "smaller_dense":
        case(f"baselines.prune:{method}", "baselines.prune")(
            lambda key, method=method: baselines.prune(key(0), method, PARAMS, X, Y, 0.25, budget=BUDGET)
        )
case("baselines.check_budget")(lambda key: tuple(map(jnp.asarray, baselines.check_budget(BUDGET))))


@case("trained.train_dense", "networks.pretrain", "networks.saliency")
def training(key):
    params = pretrain.pretrain(key(0), mlp.MLP([4, 4]), X, Y, 1, 1e-2)
    dense = trained.train_dense(key(0), (4, 4, 4), True, jnp.asarray(X), jnp.asarray(Y))
    return params, dense, mlp.saliency(dense, jnp.asarray(X, jnp.float32))


def cleaned(key):
    del key
    return export.clean(network(), np.arange(network().total) % 2 == 0)


@case("export.clean", "export.predict", "export.quantize", "export.simulate", "export.choose_bits")
def exported(key):
    small = cleaned(key)
    bits = export.choose_bits(key(1), small, X, Y, 10_000, lambda layer: layer.codes.size)
    quantized = export.quantize(small, bits)
    return export.predict(export.simulate(quantized), X), [layer.codes for layer in quantized.layers]


@case("export.read_packed", "export.read_safetensors_packed")
def written(key, folder: Path):
    quantized = export.quantize(cleaned(key), 8)
    for name, content in (export.packed.files(quantized) | export.arrays.safetensors_packed(quantized)).items():
        (folder / name).write_bytes(content)
    paths = {path.suffix: path for path in folder.iterdir()}
    read = export.read_packed(paths[".sajx"]), export.read_safetensors_packed(paths[".safetensors"])
    return [[layer.mask, layer.scales] for one in read for layer in one.layers]


@case("files.load", "files.put_back", "files.masks_like", "files.write_pruned")
def rewritten(key, folder: Path):
    source, target = folder / "dense.npz", folder / "pruned.npz"
    np.savez(source, **mlp.weight_arrays(*mlp.network_of(PARAMS)))
    found, _ = baselines.prune(key(0), "random", PARAMS, X, Y, 0.25)
    files.write_pruned(source, found, target)
    return files.load(target), files.put_back(PARAMS, found), files.masks_like(PARAMS, found)


case("files.load_dataset")(lambda key: files.load_dataset("digits").train)


# One function for each case.
FUNCTIONS = {function: name for name, function in reversed(CASES.items())}


MINUTES_WITHOUT_JIT = {name for name in CASES if name.startswith(("prune:", "prune_linear:", "testing."))}
MINUTES_WITHOUT_JIT -= {"prune:cold", f"prune_linear:{PATTERNS[0]}"}
MINUTES_WITHOUT_JIT |= {"prune", "calibrate", "collect_moments", "pruning.prune_linear_sharded", "export.clean"}
MINUTES_WITHOUT_JIT |= {"pruning.score_search", "pruning.score_search:forward", "tempering.population_anneal"}
MINUTES_WITHOUT_JIT |= {"slopes.forward_slopes"}  # and needs no jit anyway


def called(function, setting, folder):
    """What a case gives under a setting, as NumPy arrays."""
    more = {"folder": folder} if "folder" in inspect.signature(function).parameters else {}
    with SETTINGS[setting]():
        found = function(new_key(setting), **more)
        return jax.tree.map(np.asarray, found)


def settings_of(number, name):
    """The settings under which a function is called; its variants, NAME:VARIANT, have one each, in turn."""
    found = [
        setting
        for setting in SETTINGS
        if setting != "default" and (setting != "no jit" or name not in MINUTES_WITHOUT_JIT)
    ]
    return [found[number % len(found)]] if ":" in name else found


@pytest.fixture(scope="module")
def defaults():
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "function, setting",
    [
        pytest.param(function, setting, id=f"{name}-{setting}")
        for number, (function, name) in enumerate(FUNCTIONS.items())
        for setting in settings_of(number, name)
    ],
)
def test_works_under(function, setting, defaults, tmp_path):
    """Where settings change no random bits, the result is the same."""
    (tmp_path / "default").mkdir()
    (tmp_path / "set").mkdir()
    if function not in defaults:
        defaults[function] = called(function, "default", tmp_path / "default")
    expected, found = defaults[function], called(function, setting, tmp_path / "set")
    if setting == "strict":
        chex.assert_trees_all_equal(found, expected)
    elif setting == "no jit":
        chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
    else:
        chex.assert_trees_all_equal_shapes(found, expected)
        chex.assert_trees_all_equal(*(jax.tree.map(np.isfinite, result) for result in (found, expected)))


def public():
    """The names of the public functions: those of `sa_jax`, and of the modules that it hands up."""
    for module in (sa_jax, baselines, export, files, tempering, testing):
        for name, value in inspect.getmembers(module, inspect.isfunction):
            handed_up = name in getattr(module, "__all__", ())
            if not name.startswith("_") and (handed_up or value.__module__ == module.__name__):
                prefix = "" if module is sa_jax else f"{module.__name__.rpartition('.')[2]}."
                yield prefix + name


def test_every_public_function_has_a_case():
    assert set(public()) <= set(CASES) | {
        "export.export",
        "export.read_run",
        "prune_file",
    }  # commands' tests run these
