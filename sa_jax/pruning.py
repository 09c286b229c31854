"""Pruning a multilayer perceptron: what is fixed during a run, its landscape, and `prune` in one call."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sa_jax import masks, models, patterns, schedules
from sa_jax.anneal import anneal
from sa_jax.energies import Energy, cross_entropy, error_rate, kl_to_teacher
from sa_jax.incremental import Weighted, full_mlp, masked_mlp
from sa_jax.models import Network
from sa_jax.moves import Swaps, informed_swap, nudge, saliency_swap, swap_within, uniform_swap
from sa_jax.types import AnnealResult, InputError, Landscape, PyTree, Schedule, is_number

ENERGIES = ("cross_entropy", "kl_to_teacher", "error_rate")
MOVES = ("saliency", "informed", "uniform")
STARTS = ("magnitude", "saliency", "random")
SCHEDULES = ("geometric", "linear", "cosine", "logarithmic", "constant")

# Calibrated logit scale: the dense network's scaled logits get this standard deviation, and the scale rises
# as pruning shrinks the logits, at most so many fold. Chosen on validation images of MNIST.
LOGIT_SPREAD = 9.0
MOST_SHRINKAGE = 4.0
# The same where the weights were never trained: annealing will make logits far larger than those of chance.
UNTRAINED_SPREAD = 1.5
# The same of a teacher's logits.
TEACHER_SPREAD = 9.0
# Of the calibrated start temperature, where weights were trained or swaps are informed: a mask of the largest
# weights, or of few proposals, is so good that a hotter start would only destroy it. Chosen on validation samples
# of digits and MNIST.
COLD_START = 0.1
# Samples in the energy, for the square root of the branches that stay: few choices overfit less, and moves that
# need many proposals leave less time for each. Chosen on validation images of MNIST.
SAMPLES_PER_ROOT = {"informed": 800, "saliency": 200, "uniform": 200}


class Options(NamedTuple):
    """How to anneal; hashable, hence static under `jit`.

    Attributes:
      activation: 'relu', 'tanh' or 'gelu', between layers.
      energy: 'cross_entropy', 'kl_to_teacher' (the dense network's predictions in place of the labels) or
        'error_rate'.
      move: 'saliency', a swap whose new branch is drawn by `|w| * norm(input)`; 'informed', one whose two branches
        are drawn by their estimated effects, from the derivative of the energy with respect to the mask; or
        'uniform'.
      start: initial mask: 'magnitude', 'saliency' or 'random'.
      schedule: 'geometric', 'linear', 'cosine', 'logarithmic', 'constant', or `step -> temperature`.
      logit_scale: factor on the logits in all energies but the error rate; None calibrates it.
      temperature_start: in units of the energy; None calibrates it.
      temperature_end: likewise, a hundredth of the start if that is given; unused by 'logarithmic' and
        'constant'.
      nudge_share: share of the proposals that change a kept branch's weight instead of the mask, below 1; they are
        aimed by derivatives of the energy. Above 0 weights move, and positions are `Weighted`: a class of its own,
        not to be compared with fixed weights.
    """

    activation: str = "relu"
    energy: str = "cross_entropy"
    move: str = "saliency"
    start: str = "magnitude"
    schedule: str | Schedule = "geometric"
    logit_scale: float | None = None
    temperature_start: float | None = None
    temperature_end: float | None = None
    nudge_share: float = 0.0


def uses_gradients(options: Options) -> bool:
    """Whether annealing with these options takes a derivative of the energy."""
    return options.move == "informed" or options.nudge_share > 0


class Problem(NamedTuple):
    """What is fixed during a run, as arrays that travel through `jit` as arguments.

    Attributes:
      network: the fixed weights.
      data: `(inputs, targets)`, float32 `[features, samples]`; targets are labels, int32 `[samples]`, or the dense
        network's predictions, float32 `[classes, samples]`.
      mask: initial mask, flat, bool `[total]`.
      saliency: `|w| * norm(input)`, float32 `[total]`.
      logit_scale: float32 `[]`.
      temperature_start: float32 `[]`.
      temperature_end: float32 `[]`.
    """

    network: Network
    data: tuple
    mask: jax.Array
    saliency: jax.Array
    logit_scale: jax.Array
    temperature_start: jax.Array
    temperature_end: jax.Array


def prune(
    rng_key: jax.Array,
    params: PyTree,
    x: jax.Array,
    y: jax.Array,
    density: float | str = 0.05,
    num_steps: int = 200_000,
    **options: Any,
) -> tuple[PyTree, AnnealResult]:
    """Anneals which branches of a multilayer perceptron stay; no weight changes.

    The move 'informed' takes the derivative of the energy with respect to the mask, all else no derivative.

    Args:
      rng_key: a key, `[]`.
      params: Flax params of a multilayer perceptron, with or without the outer level `params`; leaves named
        `kernel` and `bias`, layers in order of their names. Biases are not masked.
      x: inputs, float `[samples, features]`. All are used in every proposal: some thousand are plenty.
      y: labels, int `[samples]`.
      density: kept / total, in (0, 1]; exactly `round(density * total)` branches stay. Or the pattern of each
        layer, see `patterns.parse`: '0.1' of each unit's inputs, 'layer:0.1', '2:4', '4x4:0.5', 'columns:0.5';
        then swaps are uniform. Blocks and columns take a full evaluation for each proposal.
      num_steps: proposals, at least 1.
      **options: fields of `Options`, such as `activation="tanh"`.

    Returns:
      `masks`, nested like `params` without the biases, bool like the kernels; and the `AnnealResult`, whose
      positions are flat masks, bool `[total]`.

    Raises:
      InputError: params that are no multilayer perceptron, inputs or labels that do not fit it or are not
        finite, a density that keeps nothing, an unknown option.

    >>> import jax, jax.numpy as jnp
    >>> from sa_jax import prune
    >>> from sa_jax.models import MLP, apply
    >>> x = jax.random.normal(jax.random.key(0), (200, 8))
    >>> y = (x[:, 0] > x[:, 1]).astype(jnp.int32)
    >>> params = MLP([16, 2]).init(jax.random.key(1), x)
    >>> masks, result = prune(jax.random.key(2), params, x, y, density=0.1, num_steps=10_000)
    >>> int(result.best.sum())
    16
    >>> bool((apply(params, masks, x).argmax(-1) == y).mean() > 0.9)
    True
    """
    if isinstance(num_steps, bool) or not hasattr(num_steps, "__index__") or num_steps < 1:
        raise InputError(f"num_steps must be a whole number of at least 1, not {num_steps!r}")
    unknown = set(options) - set(Options._fields)
    if unknown:
        raise InputError(f"unknown option {sorted(unknown)[0]!r}; options: {', '.join(Options._fields)}")
    pattern = patterns.parse(density) if isinstance(density, str) else None
    if pattern:
        options.setdefault("move", "uniform")
    chosen = check_options(Options(**options))
    if pattern and chosen.move != "uniform":
        raise InputError(f"pattern {density!r} needs move 'uniform', not {chosen.move!r}")
    if pattern and pattern.block == (1, 0):
        raise InputError("rows of the last layer are the classes: prune 'columns:...', the inputs of each layer")
    if chosen.nudge_share:
        raise InputError(
            "nudge_share moves weights, and prune returns masks alone: use sa-jax run, or leave it at 0"
        )
    names, network = models.network_of(params)
    if pattern:
        patterns.network_sets(pattern, network.shapes)  # raises where it does not fit
    kept = pattern or masks.num_kept(density, network.total)
    samples = [array if isinstance(array, jax.Array) else np.asarray(array) for array in (x, y)]
    check_samples(network, *samples)
    annealed = _prune_pattern if pattern else _prune
    result = annealed(rng_key, network, *map(jnp.asarray, samples), kept, int(num_steps), chosen)
    if not isinstance(result.best_energy, Tracer) and not np.isfinite(result.best_energy):
        raise InputError("the initial mask has no finite energy: are the weights or inputs far too large?")
    return models.mask_tree(names, masks.unflatten(result.best, network.shapes)), result


@partial(jax.jit, static_argnums=(4, 5, 6))
def _prune(rng_key, network, x, y, kept, num_steps, options):
    setup_key, chain_key = jax.random.split(rng_key)
    problem = prepare(setup_key, network, x, y, kept, options)
    schedule = make_schedule(problem, options, num_steps)
    return anneal(chain_key, make_landscape(problem, options), problem.mask, schedule, num_steps, problem.data)


@partial(jax.jit, static_argnums=(4, 5, 6))
def _prune_pattern(rng_key, network, x, y, pattern, num_steps, options):
    setup_key, chain_key, score_key = jax.random.split(rng_key, 3)
    scores = {
        "magnitude": lambda: [jnp.abs(kernel) for kernel in network.kernels],
        "saliency": lambda: masks.unflatten(models.saliency(network, x, options.activation), network.shapes),
        "random": lambda: masks.unflatten(jax.random.uniform(score_key, (network.total,)), network.shapes),
    }
    units = patterns.network_best(pattern, scores[options.start]())
    mask = patterns.network_mask(pattern, units, network.shapes)
    problem = prepare(setup_key, network, x, y, 0, options, mask)
    swaps = swap_within(patterns.network_sets(pattern, network.shapes))
    schedule = make_schedule(problem, options, num_steps)
    if pattern.block == (1, 1):
        landscape = masked_mlp(network, swaps, make_energy(problem, options), options.activation)
        return anneal(chain_key, landscape, mask, schedule, num_steps, problem.data)

    def mask_of(units):
        return patterns.network_mask(pattern, units, network.shapes)

    landscape = full_mlp(network, swaps, make_energy(problem, options), options.activation, mask_of)
    result = anneal(chain_key, landscape, (units, swaps.init(units)), schedule, num_steps, problem.data)
    return result._replace(best=mask_of(result.best[0]), final=mask_of(result.final[0]))


def prepare(
    rng_key: jax.Array,
    network: Network,
    x: jax.Array,
    y: jax.Array,
    kept: int,
    options: Options,
    mask: jax.Array | None = None,
) -> Problem:
    """Fixes what a run needs: the initial mask, the logit scale and the temperatures. Pure.

    Args:
      rng_key: a key, `[]`, for a random initial mask and the calibration.
      network: the fixed weights, `total` branches.
      x: inputs, float `[samples, features]`.
      y: labels, int `[samples]`.
      kept: number of branches that stay; static.
      options: static.
      mask: the initial mask, flat, bool `[total]`, in place of the `kept` branches that the options say.
    """
    mask_key, calibration_key = jax.random.split(rng_key)
    x = x.astype(jnp.float32)
    saliency = models.saliency(network, x, options.activation)
    magnitude = jnp.abs(masks.flatten(network.kernels))
    if mask is not None:
        first = jnp.asarray(mask, bool)
    elif options.start == "random":
        first = masks.random(mask_key, network.total, kept)
    else:
        first = masks.by_score(magnitude if options.start == "magnitude" else saliency, kept)
    dense_logits = models.forward(network, x, options.activation)
    start_logits = models.forward(models.masked(network, first), x, options.activation)
    targets = y.astype(jnp.int32)
    logit_scale, trained = calibrated_scale(dense_logits, start_logits, targets, options)
    if options.energy == "kl_to_teacher":
        targets = teacher_of(dense_logits).T
    data = (x.T, targets)
    nothing = jnp.float32(0)
    problem = Problem(network, data, first, saliency, logit_scale, nothing, nothing)
    # From swaps alone, and all of them: temperatures are the same with nudges or informed swaps.
    move = "saliency" if options.move == "informed" else options.move
    plain = make_landscape(problem, options._replace(nudge_share=0.0, move=move))
    start, end = calibrated_temperatures(calibration_key, plain, first, data, trained, options)
    return problem._replace(temperature_start=start, temperature_end=end)


def calibrated_scale(
    dense_logits: jax.Array, start_logits: jax.Array, labels: jax.Array, options: Options
) -> tuple[jax.Array, jax.Array]:
    """The logit scale, float32 `[]`, and whether the network was trained, bool `[]`.

    Args:
      dense_logits: of the dense network, float `[samples, classes]`.
      start_logits: of the initial mask, likewise.
      labels: int `[samples]`.
      options: the scale may be given.
    """
    dense_spread = dense_logits.std()
    # Never trained if its logits, at a moderate scale, tell the labels no better than chance does.
    trained = cross_entropy(1 / dense_spread)(dense_logits, labels) < math.log(dense_logits.shape[1])
    if options.logit_scale is not None:
        return jnp.float32(options.logit_scale), trained
    shrinkage = jnp.minimum(dense_spread / start_logits.std(), MOST_SHRINKAGE)
    wanted = jnp.where(trained | (options.energy == "kl_to_teacher"), LOGIT_SPREAD, UNTRAINED_SPREAD)
    return jnp.where(dense_spread == 0, 1.0, wanted / dense_spread * shrinkage), trained


def teacher_of(dense_logits: jax.Array) -> jax.Array:
    """The dense network's predictions, float32 `[samples, classes]`, as 'kl_to_teacher' takes them."""
    spread = dense_logits.std()
    return jax.nn.softmax(dense_logits * jnp.where(spread == 0, 1.0, TEACHER_SPREAD / spread), axis=1)


def calibrated_temperatures(
    rng_key: jax.Array, landscape: Landscape, position: PyTree, data: tuple, trained: jax.Array, options: Options
) -> tuple[jax.Array, jax.Array]:
    """The start and end temperature, float32 `[]`, from sampled moves or as the options have them."""
    start, end = schedules.calibrate(rng_key, landscape, position, data)
    start = jnp.where(trained | (options.move == "informed"), COLD_START * start, start)
    if options.temperature_start is not None:
        start = jnp.float32(options.temperature_start)
        end = start * (schedules.END_SHARE / schedules.START_SHARE)
    if options.temperature_end is not None:
        end = jnp.float32(options.temperature_end)
        if options.temperature_start is None:
            start = jnp.maximum(start, end)
    return start, end


def samples_for(kept: int, move: str) -> int:
    """How many training samples to anneal `kept` branches on with one of `MOVES`, if that many are there.

    >>> samples_for(647, "informed"), samples_for(647, "saliency")
    (20349, 5087)
    """
    return round(SAMPLES_PER_ROOT[move] * math.sqrt(kept))


def start_position(problem: Problem, options: Options) -> PyTree:
    """The initial position on a problem's landscape: the mask, with the weights where they move."""
    if options.nudge_share:
        return Weighted(problem.mask, masks.flatten(problem.network.kernels))
    return problem.mask


def make_landscape(problem: Problem, options: Options) -> Landscape:
    """The incremental landscape of a problem; its positions are flat masks, or `Weighted` where weights move."""
    makers: dict[str, Callable[[], Swaps]] = {
        "saliency": lambda: saliency_swap(problem.saliency),
        "informed": informed_swap,
        "uniform": uniform_swap,
    }
    swaps = makers[options.move]()
    if options.nudge_share:
        scales = [jnp.full(kernel.size, jnp.sqrt((kernel**2).mean())) for kernel in problem.network.kernels]
        swaps = nudge(swaps, jnp.concatenate(scales), options.nudge_share)
    energy, moves = make_energy(problem, options), options.nudge_share > 0
    return masked_mlp(problem.network, swaps, energy, options.activation, moves)


def refresh_steps(network: Network, options: Options) -> int:
    """Proposals between two full evaluations of the landscape of `make_landscape`."""
    nothing = jnp.zeros(())
    saliency = jnp.zeros(network.total)
    problem = Problem(network, (), saliency > 0, saliency, nothing, nothing, nothing)
    return make_landscape(problem, options).refresh_steps


def make_energy(problem: Problem, options: Options) -> Energy:
    """The energy of the logits that a problem's landscape minimises."""
    if options.energy == "kl_to_teacher":
        return kl_to_teacher(problem.logit_scale)
    return cross_entropy(problem.logit_scale) if options.energy == "cross_entropy" else error_rate()


def make_schedule(problem: Problem, options: Options, num_steps: int) -> Schedule:
    """The temperature schedule of a problem over `num_steps` steps."""
    if callable(options.schedule):
        return options.schedule
    start, end = problem.temperature_start, problem.temperature_end
    makers: dict[str, Callable[[], Schedule]] = {
        "constant": lambda: schedules.constant(start),
        "logarithmic": lambda: schedules.logarithmic(start),
        "geometric": lambda: schedules.geometric(start, end, num_steps),
        "linear": lambda: schedules.linear(start, end, num_steps),
        "cosine": lambda: schedules.cosine(start, end, num_steps),
    }
    return makers[options.schedule]()


def check_options(options: Options) -> Options:
    """Returns the options, or raises `InputError` naming the first bad one."""
    choices = {
        "activation": tuple(models.ACTIVATIONS),
        "energy": ENERGIES,
        "move": MOVES,
        "start": STARTS,
        "schedule": SCHEDULES,
    }
    for name, allowed in choices.items():
        value = getattr(options, name)
        if value not in allowed and not (name == "schedule" and callable(value)):
            raise InputError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    if options.move == "informed" and options.energy == "error_rate":
        raise InputError("move 'informed' needs an energy with a derivative: not error_rate")
    share = options.nudge_share
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise InputError(f"nudge_share must be a number from 0 to below 1, not {share!r}")
    if share and options.energy == "error_rate":
        raise InputError("nudge_share needs an energy with a derivative: not error_rate")
    for name in ("logit_scale", "temperature_start", "temperature_end"):
        value = getattr(options, name)
        if isinstance(value, jax.Array | np.ndarray | np.generic) and value.ndim == 0:
            value = value.item()
            options = options._replace(**{name: value})
        zero_fits = name != "logit_scale" and options.schedule != "geometric"
        if value is None:
            continue
        if not is_number(value) or not (value > 0 or (value == 0 and zero_fits)):
            bound = "at least 0" if zero_fits else "above 0"
            raise InputError(f"{name} must be a finite number {bound}, or None to calibrate it, not {value!r}")
    return options


def check_samples(network: Network, x: Any, y: Any) -> None:
    """Raises `InputError` where inputs or labels do not fit the network, or anything is not finite."""
    features, classes = network.sizes[0], network.sizes[-1]
    if np.ndim(x) != 2 or np.shape(x)[1] != features or np.shape(x)[0] == 0:
        raise InputError(f"inputs must have the shape [samples, {features}], not {list(np.shape(x))}")
    if np.shape(y) != np.shape(x)[:1]:
        raise InputError(f"labels must have the shape [{np.shape(x)[0]}], one per input, not {list(np.shape(y))}")
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise InputError(f"labels must be whole numbers, not {y.dtype}")
    if not any(jnp.issubdtype(x.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise InputError(f"inputs must be numbers, not {x.dtype}")
    check_values(network, x, y, classes)


def check_values(weights: PyTree, x: Any, y: Any, classes: int) -> None:
    """Raises `InputError` where weights or inputs are not finite, or labels are no classes.

    Args:
      weights: arrays.
      x: inputs, numbers `[samples, ...]`.
      y: labels, int `[samples]`.
      classes: how many there are.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((weights, x, y))):
        return  # inside someone's jit the values are not there to be looked at
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(weights)):
        raise InputError("the network's weights hold NaN or infinite values")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        if not np.isfinite(np.asarray(x).astype(np.float32)).all():
            raise InputError("inputs hold NaN or infinite values")
    least, greatest = np.asarray(y).min(), np.asarray(y).max()
    if least < 0 or greatest >= classes:
        raise InputError(
            f"labels run from {least} to {greatest}, but the network has {classes} classes: 0..{classes - 1}"
        )
