"""Score search: a stochastic search for a mask that moves many branches in each step.

Each branch has a score, and the mask keeps the branches of highest score. A step estimates from a minibatch how
the energy depends on every branch, kept or pruned. It then moves all scores against a running mean of these
estimates. One estimate is far too noisy to choose a single branch by, but the running means are good enough to
move many branches at once. Exact annealing pays a full evaluation of the energy for each swap; here a step costs
a minibatch.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sa_jax import checks
from sa_jax.annealing.chain import match_varying
from sa_jax.annealing.inputs import check_key
from sa_jax.networks import cnn_slopes, masks, slopes
from sa_jax.networks.arrays import as_numbers
from sa_jax.networks.cnn import ConvNetwork, check_conv_network, masked, samples_last
from sa_jax.networks.energies import Energy, check_energy
from sa_jax.networks.mlp import ACTIVATIONS, Network, check_activation, check_network
from sa_jax.networks.samples import as_samples, check_samples, check_values
from sa_jax.networks.slopes import ESTIMATES
from sa_jax.types import InputError, exportable

# All values below but MOST_TRIES were chosen on validation samples of MNIST and Fashion-MNIST, on 784-40-20-10,
# 784-300-100-10 and 784-1000-1000-10.
# Samples in a minibatch.
BATCH_SIZE = 128
# By how much the scores move in the first step, in their standard deviations. It falls to 0 as a cosine.
STEP_SIZE = 0.05
# Share of the running mean of the effects that remains after a step.
MOMENTUM = 0.9
# Share of the running mean square of all effects, by which the steps are scaled, that remains after a step.
SCALE_DECAY = 0.999
# Forward estimates of a layer may cost this number of forward passes of the minibatch. Where they would cost more
# they use fewer of its samples, but at least so many. Those of convolutions may cost more, because 2 or 3 samples
# are too few: so LeNet-5 gets 10 and 4.
PASSES = 1.0
CONVOLUTION_PASSES = 3.0
LEAST_SAMPLES = 2
# Thresholds that are tried before the scores are ranked by bisection, which always ends.
MOST_TRIES = 32


class ScoreSettings(NamedTuple):
    """How to search; hashable, hence static under `jit`.

    Attributes:
      num_steps: number of steps of the whole search, over which step size and temperature fall to 0.
      estimates: 'forward', from forward passes with perturbed units, or 'gradient', from the derivative of the
        energy with respect to the mask.
      temperature: scale of the Gumbel noise on the scores at the first step, in their standard deviations; it
        falls linearly to 0. At 0 the highest scores themselves are kept.
    """

    num_steps: int
    estimates: str = "forward"
    temperature: float = 0.0


@exportable
class ScoreState(NamedTuple):
    """A search between two steps.

    Attributes:
      scores: score of each branch, one array per kernel.
      effects: running mean of the estimated effects, one array per kernel.
      mean_square: running mean square of the effects of all branches, not corrected for its start at 0.
      threshold: the lowest kept score lay above it in the last step.
      energy: sum of the minibatches' energies since `init`.
    """

    scores: tuple[jax.Array, ...]  # float32 [inputs, outputs]
    effects: tuple[jax.Array, ...]  # float32 [inputs, outputs]
    mean_square: jax.Array  # float32 []
    threshold: jax.Array  # float32 []
    energy: jax.Array  # float32 []


def init(network: Network | ConvNetwork) -> ScoreState:
    """Returns a search before its first step; the scores are `|w|`, in units of their standard deviation."""
    magnitudes = masks.flatten([jnp.abs(kernel).astype(jnp.float32) for kernel in _matrices(network)])
    spread = magnitudes.std()
    scores = tuple(masks.unflatten(magnitudes / jnp.where(spread > 0, spread, 1.0), network.shapes))
    effects = tuple(map(jnp.zeros_like, scores))
    return ScoreState(scores, effects, jnp.float32(0), jnp.float32(1), jnp.float32(0))


def mask_of(state: ScoreState, num_kept: jax.Array | int) -> jax.Array:
    """Returns the mask of the `num_kept` highest scores, flat, bool `[total]`."""
    return masks.by_score(masks.flatten(state.scores), num_kept)


def run(
    rng_key: jax.Array,
    state: ScoreState,
    network: Network | ConvNetwork,
    x: jax.Array,
    targets: jax.Array,
    num_kept: jax.Array | int,
    energy: Energy,
    activation: str,
    settings: ScoreSettings,
    first_step: jax.Array | int,
    num_steps: jax.Array | int,
) -> ScoreState:
    """Makes the steps `first_step` to `first_step + num_steps - 1` of a search. Pure; jit it.

    The random numbers of a step depend on `rng_key` and the number of the step alone, so a search made in parts is
    bit for bit the search made at once.

    Args:
      rng_key: a key, `[]`, the same for all parts of a search.
      state: the search before `first_step`.
      network: the fixed weights.
      x: inputs, float32 `[samples, features]`, from which each step draws a minibatch; of a convolutional network
        images, `[samples, height, width, channels]`.
      targets: labels, int32 `[samples]`, or a teacher's predictions, float32 `[samples, classes]`.
      num_kept: number of branches that stay, int32 `[]`.
      energy: energy of the logits.
      activation: 'relu', 'tanh' or 'gelu'; a convolutional network has its own.
      settings: how to search; static.
      first_step: int32 `[]`.
      num_steps: number of steps to make, int32 `[]`.

    Returns:
      The search after these steps; `mask_of` gives its mask.
    """
    act, x, targets = ACTIVATIONS[activation], jnp.asarray(x), jnp.asarray(targets)
    step = partial(_step, rng_key, network, x, targets, jnp.int32(num_kept), energy, act)
    # The energy of one sample varies over a mesh if any of the arguments does.
    one = energy(_outputs(network, x[:1], act)[1][-1], targets[:1].T, axis=0)
    state = match_varying(state, rng_key, one, jnp.float32(num_kept))
    first = jnp.int32(first_step)
    # The number of steps may be traced, so that parts of a search of any length share one program.
    last = first + jnp.int32(num_steps)
    return jax.lax.fori_loop(first, last, lambda i, state: step(settings, state, i), state)


def _step(rng_key, network, x, targets, num_kept, energy, act, settings: ScoreSettings, state: ScoreState, number):
    number = jnp.asarray(number, jnp.int32)
    batch_key, noise_key = jax.random.split(jax.random.fold_in(rng_key, number))
    share = number.astype(jnp.float32) / settings.num_steps
    kept, threshold = highest(_with_noise(noise_key, state.scores, settings, share), num_kept, state.threshold)
    chosen = jax.random.randint(batch_key, (min(BATCH_SIZE, len(x)),), 0, len(x), jnp.int32)
    estimate = _effects_of_perceptron if isinstance(network, Network) else _effects_of_convolutions
    found, value = estimate(
        network, kept, x[chosen], targets[chosen].T, energy, act, settings.estimates == "forward"
    )
    effects, square = [], jnp.float32(0)
    for before, effect in zip(state.effects, found, strict=True):
        effect = jnp.where(jnp.isfinite(effect), effect, 0)  # NaN would stay in the mean
        effects.append(MOMENTUM * before + (1 - MOMENTUM) * effect)
        square += (effect**2).sum() / network.total
    mean_square = SCALE_DECAY * state.mean_square + (1 - SCALE_DECAY) * square
    corrected = mean_square / (1 - SCALE_DECAY ** (number.astype(jnp.float32) + 1))
    size = STEP_SIZE * (1 + jnp.cos(jnp.pi * share)) / 2
    rate = jnp.where(corrected > 0, size * jax.lax.rsqrt(corrected), 0)
    scores = tuple(score - rate * effect for score, effect in zip(state.scores, effects, strict=True))
    return ScoreState(scores, tuple(effects), mean_square, threshold, state.energy + value)


def _effects_of_perceptron(network, kept, x, targets, energy, act, forward):
    """The effect of each branch, to first order, `w * dE/d(w m)`; and the energy of the minibatch."""
    kernels = [jnp.where(mask, kernel, 0) for mask, kernel in zip(kept, network.kernels, strict=True)]
    pruned = network._replace(kernels=tuple(kernels))
    entering, outputs = _outputs(pruned, x, act)
    arguments = pruned, outputs, [targets], energy, act
    if forward:
        used = _samples(network.shapes, len(x))
        by_layer = slopes.forward_slopes(*arguments, used)
    else:
        used = [len(x)] * len(network.shapes)
        by_layer = slopes.gradient_slopes(*arguments)
    layers = zip(network.kernels, entering, by_layer, used, strict=True)
    effects = [kernel * (active[:, :count] @ slope.T) / count for kernel, active, slope, count in layers]
    return effects, energy(outputs[-1], targets, axis=0).astype(jnp.float32)


def _effects_of_convolutions(network, kept, x, targets, energy, act, forward):
    """As `_effects_of_perceptron`, of a convolutional network."""
    matrices = _matrices(network)
    pruned = masked(network, masks.flatten(kept))
    entering, outputs = _outputs(pruned, x, act)
    if forward:
        used = _samples_of_convolutions(network, len(x))
        by_layer = cnn_slopes.forward_slopes(pruned, entering, outputs, [targets], energy, used)
    else:
        by_layer = cnn_slopes.gradient_slopes(pruned, entering[0], [targets], energy)
    effects = [matrix * slope for matrix, slope in zip(matrices, by_layer, strict=True)]
    return effects, energy(outputs[-1], targets, axis=0).astype(jnp.float32)


def _outputs(network, x, act):
    """The inputs of each layer and its outputs before the activation, samples last."""
    if not isinstance(network, Network):
        return cnn_slopes.layer_outputs(network, samples_last(x, network.architecture))
    outputs = slopes.layer_outputs(network, x.T, act)
    return [x.T, *map(act, outputs[:-1])], outputs


def _matrices(network: Network | ConvNetwork) -> Sequence[jax.Array]:
    """The kernels, those of convolutions as matrices."""
    return network.kernels if isinstance(network, Network) else cnn_slopes.matrices_of(network)


def _with_noise(rng_key, scores, settings: ScoreSettings, share) -> Sequence[jax.Array]:
    if not settings.temperature:
        return scores
    temperature = settings.temperature * (1 - share)
    keys = [jax.random.fold_in(rng_key, layer) for layer in range(len(scores))]
    noise = [jax.random.gumbel(key, score.shape, jnp.float32) for key, score in zip(keys, scores, strict=True)]
    return [score + temperature * one for score, one in zip(scores, noise, strict=True)]


def _samples(shapes: Sequence[tuple[int, int]], samples: int) -> list[int]:
    """On how many samples of a minibatch the forward estimates of each layer are made."""
    passes = PASSES * sum(inputs * outputs for inputs, outputs in shapes)
    costs = [outputs * cost for (_, outputs), cost in zip(shapes, slopes.forward_costs(shapes), strict=True)]
    return [min(max(int(samples * passes / cost), LEAST_SAMPLES), samples) for cost in costs]


def _samples_of_convolutions(network: ConvNetwork, samples: int) -> list[int]:
    passes, costs = cnn_slopes.layer_costs(network.architecture), cnn_slopes.forward_costs(network.architecture)
    count = len(network.architecture.convolutions)
    allowed = [(CONVOLUTION_PASSES if layer < count else PASSES) * sum(passes) for layer in range(len(costs))]
    wanted = [int(samples * most / cost) for most, cost in zip(allowed, costs, strict=True)]
    return [min(max(number, LEAST_SAMPLES), samples) for number in wanted]


def highest(
    scores: Sequence[jax.Array], num_kept: jax.Array, guess: jax.Array
) -> tuple[list[jax.Array], jax.Array]:
    """Keeps exactly `num_kept` branches of highest score.

    Scores change little in a step, and so does the threshold between kept and pruned ones. It is found from the
    last one by a safeguarded secant method, on the logarithm of the number of scores above it. Where scores are
    equal, or the method takes too long, they are ranked by `masks.by_score`.

    Args:
      scores: float32, one array `[inputs, outputs]` per kernel.
      num_kept: int32 `[]`, from 1 to the number of scores.
      guess: where the threshold may be, float32 `[]`.

    Returns:
      One mask per kernel, bool of its shape; and the threshold, float32 `[]`.
    """
    total = sum(score.size for score in scores)

    def above(threshold):
        return jnp.stack([(score > threshold).sum(dtype=jnp.int32) for score in scores]).sum(dtype=jnp.int32)

    def missed(carry):
        _, _, count, tries = carry
        return (count != num_kept) & (tries < MOST_TRIES)

    def again(carry):
        ends, threshold, count, tries = carry
        low, above_low, high, above_high = ends
        more = count > num_kept
        low, above_low = jnp.where(more, threshold, low), jnp.where(more, count, above_low)
        high, above_high = jnp.where(more, high, threshold), jnp.where(more, above_high, count)
        logs = [
            jnp.log(jnp.maximum(number.astype(jnp.float32), 0.5)) for number in (above_low, num_kept, above_high)
        ]
        share = jnp.clip((logs[0] - logs[1]) / jnp.maximum(logs[0] - logs[2], 1e-6), 0.05, 0.95)
        share = jnp.where(tries % 4 == 3, 0.5, share)
        outward = 0.01 * 2.0 ** tries.astype(jnp.float32)
        between = low + share * (high - low)
        threshold = jnp.where(jnp.isinf(high), low + outward, jnp.where(jnp.isinf(low), high - outward, between))
        return (low, above_low, high, above_high), threshold, above(threshold), tries + 1

    first = above(guess)
    nothing = 0 * first  # inside `shard_map` the ends must vary over the mesh like the counts
    infinite = jnp.float32(jnp.inf) + nothing.astype(jnp.float32)
    carry = (-infinite, total + nothing, infinite, nothing), guess, first, nothing
    _, threshold, count, _ = jax.lax.while_loop(missed, again, carry)

    def ranked():
        shapes = [(score.shape[0], score.shape[1]) for score in scores]
        return masks.unflatten(masks.by_score(masks.flatten(scores), num_kept), shapes)

    kept = jax.lax.cond(count == num_kept, lambda: [score > threshold for score in scores], ranked)
    return kept, threshold


def score_search(
    rng_key: jax.Array,
    network: Network | ConvNetwork,
    x: jax.Array,
    targets: jax.Array,
    num_kept: int,
    num_steps: int,
    energy: Energy,
    activation: str = "relu",
    estimates: str = "forward",
    temperature: float = 0.0,
) -> jax.Array:
    """Searches a mask of fixed weights by scores. Pure; jit it.

    A stochastic search with a temperature: it has no detailed balance, and samples no known distribution. Exactly
    `num_kept` branches are kept in every step. The search starts at the scores `|w|`. In each step, with minibatch
    energy `E` and mask `m`, the effect of each branch is `g = w * dE/d(w m)`, estimated for kept and for pruned
    branches alike. The scores move by `-a * mean(g) / sqrt(mean(g**2))`, where the first mean runs over the last
    steps of the branch, and the second over all branches and many more steps.

    Edge-popup (Ramanujan et al. 2020) moves scores by the same effects, from back-propagation. With
    `estimates='forward'` nothing is differentiated: see `sa_jax.networks.slopes.forward_slopes`.

    Args:
      rng_key: a key, `[]`.
      network: the fixed weights; any depth and widths, trained or random, with or without biases; a perceptron's,
        or those of a convolutional network, see `sa_jax.networks.cnn`.
      x: inputs, float `[samples, features]`, or images, `[samples, height, width, channels]`. Standardise them: a
        single outlier of 1e6 nearly stops the search.
      targets: labels, int `[samples]`, for `cross_entropy`, or a teacher's predictions, float `[samples,
        classes]`, for `kl_to_teacher`.
      num_kept: number of branches that stay, from 1 to `total`; static.
      num_steps: number of steps, at least 1; static.
      energy: energy of the logits, such as `cross_entropy(4.0)`; not `error_rate()`, which is flat almost
        everywhere.
      activation: 'relu', 'tanh' or 'gelu'; static. A convolutional network has its own.
      estimates: 'forward' or 'gradient', see `ScoreSettings`; static.
      temperature: see `ScoreSettings`; static.

    Returns:
      A flat mask, bool `[total]`, with exactly `num_kept` ones.

    Raises:
      InputError: an argument out of range, samples that do not fit the network, or no key.

    >>> from sa_jax.networks.energies import cross_entropy
    >>> from sa_jax.networks.mlp import MLP, network_of
    >>> x = jax.random.normal(jax.random.key(0), (200, 8))
    >>> y = (x[:, 0] > x[:, 1]).astype(jnp.int32)
    >>> _, network = network_of(MLP([16, 2]).init(jax.random.key(1), x))
    >>> mask = score_search(jax.random.key(2), network, x, y, 16, 300, cross_entropy())
    >>> int(mask.sum())
    16
    """
    check_key(rng_key)
    if isinstance(network, ConvNetwork):
        check_conv_network(network)
    else:
        check_network(network)
    check_energy(energy)
    check_activation(activation)
    settings = check_settings(ScoreSettings(num_steps, estimates, temperature))
    num_kept = checks.whole("num_kept", num_kept, 1, network.total)
    samples = _check_samples(network, x, targets)
    return found_mask(rng_key, network, *samples, num_kept, energy, activation, settings)


def _check_samples(network: Network | ConvNetwork, x: Any, targets: Any) -> tuple[jax.Array, jax.Array]:
    """Inputs and targets as arrays, after checking that they fit the network."""
    labels = targets = as_numbers("targets", targets)
    classes = network.shapes[-1][1]
    if predicted := np.ndim(targets) == 2:
        if targets.shape[1] != classes:
            raise InputError(f"predictions must have the shape [samples, {classes}], not {list(targets.shape)}")
        if not isinstance(targets, Tracer) and not np.isfinite(targets).all():
            raise InputError("predictions hold NaN or infinite values")
        labels = targets.argmax(1)
    if isinstance(network, ConvNetwork):
        x, labels = as_samples(x, labels)
        samples_last(x[:1], network.architecture)  # refuses images of another shape
        if np.shape(labels) != np.shape(x)[:1]:
            raise InputError(f"labels must have the shape [{len(x)}], one per input, not {list(np.shape(labels))}")
        check_values(network, x, labels, classes)
    else:
        x, _ = check_samples(network, x, labels)
    return jnp.asarray(x, jnp.float32), jnp.asarray(targets, jnp.float32 if predicted else jnp.int32)


def found_mask(
    rng_key: jax.Array,
    network: Network | ConvNetwork,
    x: jax.Array,
    targets: jax.Array,
    num_kept: jax.Array | int,
    energy: Energy,
    activation: str,
    settings: ScoreSettings,
) -> jax.Array:
    """Returns the mask of a whole search, as `score_search` does; arguments as in `run`, and unchecked."""
    arguments = network, x, targets, num_kept, energy, activation, settings
    return mask_of(run(rng_key, init(network), *arguments, 0, settings.num_steps), num_kept)


def check_settings(settings: ScoreSettings) -> ScoreSettings:
    """Returns the settings as plain numbers.

    Raises:
      InputError: a setting out of range.
    """
    checks.choice("estimates", settings.estimates, ESTIMATES)
    num_steps = checks.whole("num_steps", settings.num_steps, 1)
    return ScoreSettings(
        num_steps, settings.estimates, checks.number("temperature", settings.temperature, least=0)
    )
