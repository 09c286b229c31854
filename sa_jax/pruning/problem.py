"""Makes the fixed parts of a run from its options: arrays, landscape, energy and schedule."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sa_jax.annealing import schedules
from sa_jax.landscapes import native
from sa_jax.landscapes.mlp import Weighted, chosen_backend, masked_mlp
from sa_jax.moves import SwapProposal, informed_swap, nudge, saliency_swap, swap_within, uniform_swap
from sa_jax.networks import masks, mlp, patterns
from sa_jax.networks.energies import Energy, cross_entropy, error_rate, kl_to_teacher
from sa_jax.networks.mlp import Network
from sa_jax.pruning.options import Options
from sa_jax.types import Landscape, PyTree, Schedule

# The calibrated logit scale gives the dense network's scaled logits this standard deviation. The scale rises as
# pruning shrinks the logits, at most by the factor MAX_SHRINKAGE. How much it shrinks them is measured on the
# initial mask; with score search, on the mask of the largest weights. Chosen on validation images of MNIST.
LOGIT_SPREAD = 9.0
MAX_SHRINKAGE = 4.0
# Standard deviation where the weights were never trained: annealing will make the logits far larger than they are.
# Chosen on validation images of MNIST, with random weights.
UNTRAINED_SPREAD = 1.5
# Standard deviation of a teacher's scaled logits.
TEACHER_SPREAD = 9.0
# Share of the calibrated start temperature that is used where weights were trained or swaps are informed. The
# initial mask, or the mask after few informed swaps, is then so good that a hotter start would only destroy it.
# Chosen on validation samples of digits and MNIST, with trained and random weights.
COLD_START = 0.1


class Problem(NamedTuple):
    """The fixed parts of a run, as arrays that are passed to `jit` as arguments.

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
    mask: jax.Array  # bool [total]
    saliency: jax.Array  # float32 [total]
    logit_scale: jax.Array  # float32 []
    temperature_start: jax.Array  # float32 []
    temperature_end: jax.Array  # float32 []


def prepare(
    rng_key: jax.Array,
    network: Network,
    x: jax.Array,
    y: jax.Array,
    num_kept: int,
    options: Options,
    mask: jax.Array | None = None,
) -> Problem:
    """Chooses the initial mask, the logit scale and the temperatures of a run. Pure.

    Args:
      rng_key: a key, `[]`, for a random initial mask and the calibration.
      network: the fixed weights, `total` branches.
      x: inputs, float `[samples, features]`.
      y: labels, int `[samples]`.
      num_kept: number of branches that stay; unused where a pattern tells it; static.
      options: how to anneal; static.
      mask: initial mask, flat, bool `[total]`; None for the one that `num_kept` and `options.start` give. Without
        the mask that score search has found, 'score_search' gives the one from which it starts.
    """
    mask_key, calibration_key = jax.random.split(rng_key)
    x = x.astype(jnp.float32)
    saliency = mlp.saliency(network, x, options.activation)
    magnitude = jnp.abs(masks.flatten(network.kernels))
    if options.pattern is not None:
        first = patterns.network_best(options.pattern, start_scores(mask_key, network, saliency, options))
    elif options.start == "random" and mask is None:
        first = masks.random(mask_key, network.total, num_kept)
    else:
        first = masks.by_score(saliency if options.start == "saliency" else magnitude, num_kept)
    given = first if mask is None else jnp.asarray(mask, bool)
    dense_logits = mlp.forward(network, x, options.activation)
    # Score search starts from the largest weights, and annealing then continues on the same energy.
    reference = first if options.start == "score_search" else given
    start_logits = mlp.forward(mlp.masked(network, reference), x, options.activation)
    targets = y.astype(jnp.int32)
    logit_scale, trained = calibrated_scale(dense_logits, start_logits, targets, options)
    if options.energy == "kl_to_teacher":
        targets = teacher_of(dense_logits).T
    data = (x.T, targets)
    nothing = jnp.float32(0)
    problem = Problem(network, data, given, saliency, logit_scale, nothing, nothing)
    # Calibrated on plain swaps, so that temperatures are the same with nudges, informed swaps or a pattern.
    move = "saliency" if options.move == "informed" else options.move
    plain = make_landscape(problem, options._replace(nudge_share=0.0, move=move, pattern=None))
    start, end = calibrated_temperatures(calibration_key, plain, given, data, trained, options)
    return problem._replace(temperature_start=start, temperature_end=end)


def start_scores(rng_key: jax.Array, network: Network, saliency: jax.Array, options: Options) -> list[jax.Array]:
    """Returns the scores whose highest, as far as a pattern allows, make its initial mask.

    Args:
      rng_key: a key, `[]`, for random scores.
      network: the fixed weights.
      saliency: `|w| * norm(input)`, float32 `[total]`.
      options: how to anneal; its start gives the scores.

    Returns:
      One array `[inputs, outputs]` for each kernel, float32.
    """
    if options.start == "random":
        return masks.unflatten(jax.random.uniform(rng_key, (network.total,), jnp.float32), network.shapes)
    if options.start == "saliency":
        return masks.unflatten(saliency, network.shapes)
    return [jnp.abs(kernel) for kernel in network.kernels]


def calibrated_search(
    network: Network, x: jax.Array, y: jax.Array, num_kept: int, options: Options
) -> tuple[jax.Array, jax.Array]:
    """Returns the logit scale of score search, float32 `[]`, and the targets of all samples. Pure.

    Args:
      network: the fixed weights.
      x: inputs, float `[samples, features]`.
      y: labels, int `[samples]`.
      num_kept: number of branches that stay; static.
      options: how to anneal; static.

    Returns:
      The scale; and the labels, int32 `[samples]`, or the dense network's predictions, float32 `[samples,
      classes]`.
    """
    magnitude = jnp.abs(masks.flatten(network.kernels))
    dense_logits = mlp.forward(network, x, options.activation)
    start = mlp.masked(network, masks.by_score(magnitude, num_kept))
    start_logits = mlp.forward(start, x, options.activation)
    targets = y.astype(jnp.int32)
    logit_scale, _ = calibrated_scale(dense_logits, start_logits, targets, options)
    return logit_scale, teacher_of(dense_logits) if options.energy == "kl_to_teacher" else targets


def calibrated_scale(
    dense_logits: jax.Array, start_logits: jax.Array, labels: jax.Array, options: Options
) -> tuple[jax.Array, jax.Array]:
    """Returns the logit scale, float32 `[]`, and whether the network was trained, bool `[]`.

    Args:
      dense_logits: logits of the dense network, float `[samples, classes]`.
      start_logits: logits of the initial mask, float `[samples, classes]`.
      labels: int `[samples]`.
      options: how to anneal; the options may give the scale.
    """
    dense_spread = dense_logits.std()
    # A network counts as untrained if its logits, at a moderate scale, predict the labels no better than chance.
    trained = cross_entropy(1 / dense_spread)(dense_logits, labels) < math.log(dense_logits.shape[1])
    if options.logit_scale is not None:
        return jnp.float32(options.logit_scale), trained
    shrinkage = jnp.minimum(dense_spread / start_logits.std(), MAX_SHRINKAGE)
    wanted = jnp.where(trained | (options.energy == "kl_to_teacher"), LOGIT_SPREAD, UNTRAINED_SPREAD)
    return jnp.where(dense_spread == 0, 1.0, wanted / dense_spread * shrinkage), trained


def teacher_of(dense_logits: jax.Array) -> jax.Array:
    """Returns the dense network's predictions, float32 `[samples, classes]`, the targets of 'kl_to_teacher'."""
    spread = dense_logits.std()
    return jax.nn.softmax(dense_logits * jnp.where(spread == 0, 1.0, TEACHER_SPREAD / spread), axis=1)


def calibrated_temperatures(
    rng_key: jax.Array, landscape: Landscape, position: PyTree, data: tuple, trained: jax.Array, options: Options
) -> tuple[jax.Array, jax.Array]:
    """Returns the start and end temperature, float32 `[]`, from the options or calibrated on sampled moves."""
    if options.temperature_start is not None:
        start = jnp.float32(options.temperature_start)
        end = start * (schedules.END_SHARE / schedules.START_SHARE)
    else:
        start, end = schedules.calibrate(rng_key, landscape, position, data)
        start = jnp.where(trained | (options.move == "informed"), COLD_START * start, start)
    if options.temperature_end is not None:
        end = jnp.float32(options.temperature_end)
        if options.temperature_start is None:
            start = jnp.maximum(start, end)
    return start, end


def start_position(problem: Problem, options: Options) -> PyTree:
    """Returns the initial position on a problem's landscape: the mask, or `Weighted` where weights move."""
    if options.nudge_share:
        return Weighted(problem.mask, masks.flatten(problem.network.kernels))
    return problem.mask


def make_landscape(problem: Problem, options: Options) -> Landscape:
    """Returns a problem's incremental landscape; positions are flat masks, or `Weighted` where weights move."""
    makers: dict[str, Callable[[], SwapProposal]] = {
        "saliency": lambda: saliency_swap(problem.saliency),
        "informed": informed_swap,
        "uniform": lambda: uniform_swap() if options.pattern is None else _within(problem, options.pattern),
    }
    swaps = makers[options.move]()
    if options.nudge_share:
        scales = [jnp.full(kernel.size, jnp.sqrt((kernel**2).mean())) for kernel in problem.network.kernels]
        swaps = nudge(swaps, jnp.concatenate(scales), options.nudge_share)
    energy, guide = make_energy(problem, options), guiding_energy(problem.logit_scale, options)
    moves = options.nudge_share > 0
    how = moves, options.estimates, guide, options.backend
    return masked_mlp(problem.network, swaps, energy, options.activation, *how)


def _within(problem: Problem, pattern: patterns.Pattern) -> SwapProposal:
    return swap_within(patterns.network_sets(pattern, problem.network.shapes))


def backend_of(options: Options) -> str:
    """Returns 'native' or 'xla', what evaluates the proposals on the landscape of `make_landscape`.

    Raises:
      InputError: the backend is 'native', and that is not possible on this machine.
    """
    energy = error_rate() if options.energy == "error_rate" else guiding_energy(1.0, options)
    return chosen_backend(options.backend, energy, options.activation)


def described_backend(options: Options) -> str:
    """Returns what `backend_of` returns, with the vector instructions and the compiler of native code."""
    backend = backend_of(options)
    return backend if backend == "xla" else f"native, {native.ready().description}"


def refresh_steps(network: Network, options: Options) -> int:
    """Returns the number of proposals between two full evaluations of the landscape of `make_landscape`."""
    nothing = jnp.zeros(())
    saliency = jnp.zeros(network.total)
    problem = Problem(network, (), saliency > 0, saliency, nothing, nothing, nothing)
    return make_landscape(problem, options).refresh_steps


def make_energy(problem: Problem, options: Options) -> Energy:
    """Returns the energy of the logits that a problem's landscape minimises."""
    return error_rate() if options.energy == "error_rate" else guiding_energy(problem.logit_scale, options)


def guiding_energy(logit_scale: jax.Array | float, options: Options) -> Energy:
    """Returns the energy for estimates and score search: the cross-entropy for 'error_rate', else the same.

    Args:
      logit_scale: factor on the logits, float32 `[]`.
      options: how to anneal.
    """
    if options.energy == "kl_to_teacher":
        return kl_to_teacher(logit_scale)
    return cross_entropy(logit_scale)


def make_schedule(problem: Problem, options: Options, num_steps: int) -> Schedule:
    """Returns the temperature schedule of a problem over `num_steps` steps."""
    if callable(options.schedule):
        return options.schedule
    start, end = problem.temperature_start, problem.temperature_end
    makers: dict[str, Callable[[], Schedule]] = {
        "constant": lambda: schedules.constant_schedule(start),
        "logarithmic": lambda: schedules.logarithmic_schedule(start),
        "geometric": lambda: schedules.geometric_schedule(start, end, num_steps),
        "linear": lambda: schedules.linear_schedule(start, end, num_steps),
        "cosine": lambda: schedules.cosine_schedule(start, end, num_steps),
    }
    return makers[options.schedule]()
