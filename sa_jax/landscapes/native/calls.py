"""Calls the native code from JAX programs, and checks it once before it is used."""

import functools
import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.landscapes.native.library import TARGET, Library, Unavailable, load
from sa_jax.networks.energies import CrossEntropy, Energy, ErrorRate, KlToTeacher, MarginLoss
from sa_jax.types import Scalar

# In the order of the source.
ACTIVATIONS = ("relu", "tanh", "gelu")
ENERGIES = (CrossEntropy, KlToTeacher, MarginLoss, ErrorRate)
# Largest difference from NumPy in the check.
TOLERANCE = 1e-5


def supports(energy: Energy, activation: str) -> bool:
    """Returns whether the native code knows an energy and an activation."""
    # A derived class may compute something else.
    return type(energy) in ENERGIES and activation in ACTIVATIONS


def ready() -> Library:
    """Loads the native code, once per process. Code that is compiled now is first checked against NumPy.

    Raises:
      Unavailable: it cannot be compiled, or its results are wrong.
    """
    found = _found()
    if isinstance(found, Unavailable):
        raise found
    return found


@functools.cache
def _found() -> Library | Unavailable:
    try:
        return load(_check)
    except Unavailable as reason:  # kept, because it would be the same the next time
        return reason


def _check() -> None:
    # A thread of its own, because this may be called while a program is traced.
    try:
        with ThreadPoolExecutor(1) as executor:
            difference = executor.submit(_largest_difference).result()
    except Exception as error:
        raise Unavailable(f"the compiled native code cannot be called: {error}") from error
    if not difference < TOLERANCE:
        raise Unavailable(f"the compiled native code is wrong by {difference:.2g}: please report this compiler")


def settle(
    energy: Energy,
    activation: str,
    branches: Sequence[jax.Array],
    nudge: Scalar,
    rule: Sequence[Scalar],
    mask: jax.Array,
    inputs: jax.Array,
    targets: jax.Array,
    weights: Sequence[jax.Array],
    outputs: Sequence[jax.Array],
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """Evaluates a swap or a nudge, accepts or rejects it, and updates the outputs of the layers, in place.

    Args:
      energy: an energy that `supports` knows.
      activation: one of `ACTIVATIONS`.
      branches: the pruned and the grown branch, int32 `[]` each; the same if the move is a nudge.
      nudge: amount to add to the weight of the branch of a nudge, float32 `[]`.
      rule: log proposal ratio, logarithm of a uniform random number, temperature, current energy, float32 `[]`
        each; see `sa_jax.annealing.chain.accept`.
      mask: flat, bool `[total]`.
      inputs: network inputs, float32 `[features, samples]`.
      targets: labels, int32 `[samples]`, or predictions, float32 `[classes, samples]`.
      weights: those of each layer, float32 `[inputs * outputs]`, or one array `[total]`.
      outputs: outputs of each layer before its activation, float32 `[units, samples]`.

    Returns:
      Whether the move is accepted, bool `[]`; the energy of the proposed position; and the outputs after the step.
    """
    scale, smoothing, constant = _numbers(energy, targets)
    kinds = ACTIVATIONS.index(activation), ENERGIES.index(type(energy))
    whole = jnp.stack([jnp.asarray(number, jnp.int32) for number in (*branches, *kinds)])
    log_q_ratio, log_u, temperature, now = rule
    numbers = nudge, log_q_ratio, log_u, temperature, now - constant, scale, smoothing
    reals = jnp.stack([jnp.asarray(number, jnp.float32) for number in numbers])
    # What is read there has to have these types and shapes, or else it would be read past its end.
    samples, classes = inputs.shape[1], outputs[-1].shape[0]
    is_teacher = isinstance(energy, KlToTeacher)
    targets = jnp.broadcast_to(targets, (classes, samples) if is_teacher else (samples,))
    targets = targets.astype(jnp.float32 if is_teacher else jnp.int32)
    weights = [of_layer.astype(jnp.float32) for of_layer in weights]
    arrays = mask.astype(bool), inputs.astype(jnp.float32), targets, *weights
    # Under vmap and shard_map all operands have to vary like the outputs. This compiles to nothing.
    zero = whole[0] * 0
    for array in (reals, *arrays, *outputs):
        zero += array.ravel()[0].astype(jnp.int32) * 0
    whole, outputs = whole + zero, [values + zero.astype(jnp.float32) for values in outputs]
    results = [jax.typeof(whole[0]), jax.typeof(outputs[0][0, 0]), *map(jax.typeof, outputs)]
    first = 2 + len(arrays)
    call = jax.ffi.ffi_call(
        TARGET,
        results,
        vmap_method="expand_dims",
        input_output_aliases={first + layer: 2 + layer for layer in range(len(outputs))},
    )
    accepted, new, *outputs = call(whole, reals, *arrays, *outputs)
    return accepted > 0, new + constant, tuple(outputs)


def _numbers(energy, targets):
    """The two numbers of an energy, and a constant that the native code leaves out."""
    if isinstance(energy, CrossEntropy):
        return energy.logit_scale, energy.label_smoothing, jnp.float32(0)
    if isinstance(energy, KlToTeacher):
        return energy.logit_scale, 0, -jax.scipy.special.entr(targets).sum(0).mean()
    return energy.margin if isinstance(energy, MarginLoss) else 1, 0, jnp.float32(0)


def _largest_difference() -> float:
    """The largest difference from NumPy after a swap in a small network, in its outputs and its energy."""
    random = np.random.default_rng(0)
    sizes, samples = (6, 5, 4, 3), 300
    kernels = [random.normal(size=shape).astype(np.float32) for shape in itertools.pairwise(sizes)]
    mask = random.random(sum(kernel.size for kernel in kernels)) < 0.7
    inputs = random.normal(size=(sizes[0], samples)).astype(np.float32)
    labels = random.integers(0, sizes[-1], samples).astype(np.int32)

    def evaluate(mask):
        outputs, entering, start = [], inputs, 0
        for kernel in kernels:
            kept = mask[start : start + kernel.size].reshape(kernel.shape)
            start += kernel.size
            outputs.append(np.where(kept, kernel, 0).T @ entering)
            entering = np.maximum(outputs[-1], 0)
        logits = outputs[-1]
        return outputs, np.mean(np.log(np.exp(logits).sum(0)) - logits[labels, np.arange(samples)])

    swapped = mask.copy()
    pruned, grown = np.flatnonzero(mask)[0], np.flatnonzero(~mask)[0]
    swapped[pruned], swapped[grown] = False, True
    (before, now), (after, wanted) = evaluate(mask), evaluate(swapped)

    @jax.jit
    def call(*arrays):
        rule = 0.0, -jnp.inf, 1.0, jnp.float32(now)
        return settle(CrossEntropy(1.0, 0.0), "relu", (pruned, grown), 0.0, rule, *arrays)

    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        accepted, energy, outputs = call(mask, inputs, labels, [kernel.ravel() for kernel in kernels], before)
    differences = [np.abs(one - other).max() for one, other in zip(outputs, after, strict=True)]
    return float(max(*differences, abs(energy - wanted))) if accepted else math.inf
