"""SparseFW and ALPS: the mask by continuous optimisation, in place of moves between masks.

SparseFW lets each entry of the mask lie in [0, 1]. The error of the layer is then convex, and the Frank-Wolfe
algorithm minimises it. ALPS splits the weights into a dense copy, which minimises the error, and a sparse copy.
ADMM pulls them together until the support of the sparse copy stays. The weights on this support then solve their
normal equations. Both work on all rows at once, by products with the Gram matrix.
"""

from functools import partial

import jax
import jax.numpy as jnp

from sa_jax.checks import number, whole
from sa_jax.landscapes.linear import pruning_errors
from sa_jax.networks import patterns
from sa_jax.networks.patterns import NM, Layer, Pattern, Unit
from sa_jax.pruning.gram import check_layer, checked_correction, checked_damping, damped
from sa_jax.types import InputError

# SparseFW: share of the kept weights that are fixed, as in the paper, and the number of steps.
FIXED, STEPS = 0.9, 500
# ALPS: the first penalty, and the most iterations. After every `ROUND` iterations the penalty grows by the first
# factor whose share of the kept branches has changed in the support. If no branch has changed, ADMM ends.
PENALTY, ITERATIONS, ROUND = 0.1, 300, 3
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
# Conjugate gradients of ALPS: the most iterations, and the residual at which they end, relative to the first one.
GRADIENTS, RESIDUAL = 300, 1e-5


def sparse_fw(
    weight: jax.Array,
    gram: jax.Array,
    density: float | Pattern,
    dense_correction: jax.Array | None = None,
    fixed: float = FIXED,
    num_steps: int = STEPS,
) -> jax.Array:
    """Minimises the error over relaxed masks, and keeps their largest entries (SparseFW; Roux et al. 2025).

    No weight changes. The relaxed mask starts as Wanda's, and the weights with Wanda's highest scores are fixed.
    Step t moves `2 / (t + 2)` of the way to the mask that lowers the error most by its derivative. That mask keeps
    no weight whose derivative is positive. We had the abstract of the paper and its share of fixed weights, not
    its text. So these are ours: t begins with 1, the number of steps, and that the share is taken of each set and
    rounded down.

    Args:
      weight: float `[outputs, inputs]`.
      gram: `X' X` of the layer's inputs `X`, or any multiple of it, float `[inputs, inputs]`.
      density: the share of the layer's weights that is kept, in (0, 1]; or `patterns.Layer`, `patterns.Unit` or
        `patterns.NM`.
      dense_correction: as in `prune_linear`.
      fixed: share of the kept weights of each set that are fixed, from 0 to 1.
      num_steps: number of steps, at least 0.

    Returns:
      The mask, bool `[outputs, inputs]`.

    Raises:
      InputError: another pattern, a Gram matrix or dense correction that does not fit the weight, or a number
        out of range.
    """
    pattern = patterns.of_layer(density)
    if not isinstance(pattern, Layer | Unit | NM):
        raise InputError(
            f"SparseFW prunes to a number such as 0.5, to Unit(0.5) or to NM(2, 4), not to {pattern!r}"
        )
    weight, gram = check_layer(weight, gram)
    patterns.rule_of(pattern).blocks((weight.shape[0], weight.shape[1]))
    dense_correction = checked_correction(weight, dense_correction)
    fixed, num_steps = number("fixed", fixed, least=0, most=1), whole("num_steps", num_steps)
    return patterns.best(
        pattern, relaxed_mask(weight, gram, dense_correction, pattern, fixed, jnp.int32(num_steps))
    )


@partial(jax.jit, static_argnames=("pattern", "fixed"))
def relaxed_mask(
    weight: jax.Array,
    gram: jax.Array,
    dense_correction: jax.Array,
    pattern: Pattern,
    fixed: float,
    num_steps: jax.Array,
) -> jax.Array:
    """Minimises the error of a layer over relaxed masks by the Frank-Wolfe algorithm, see `sparse_fw`.

    Args:
      weight: float32 `[outputs, inputs]`.
      gram: float `[inputs, inputs]`.
      dense_correction: float32 `[outputs, inputs]`.
      pattern: `Layer`, `Unit` or `NM`.
      fixed: as in `sparse_fw`.
      num_steps: int32 `[]`.

    Returns:
      The relaxed mask, float32 `[outputs, inputs]` in [0, 1]; entries that are fixed have 1.
    """
    rule, gram = patterns.rule_of(pattern), gram.astype(jnp.float32)
    size = rule.set_size((weight.shape[0], weight.shape[1]))
    num_kept = rule.num_kept_of(size)
    num_fixed = int(fixed * num_kept)
    scores = pruning_errors(weight, gram).reshape(weight.shape)
    always = highest(scores, size, num_fixed)

    def one_step(step, relaxed):
        derivative = weight * (((relaxed - 1) * weight) @ gram + dense_correction)
        lowest = highest(jnp.where(always, -jnp.inf, -derivative), size, num_kept - num_fixed)
        vertex = always | (lowest & (derivative < 0))
        return relaxed + 2 / jnp.float32(step + 2) * (vertex.astype(jnp.float32) - relaxed)

    start = highest(scores, size, num_kept).astype(jnp.float32)
    return jax.lax.fori_loop(1, num_steps + 1, one_step, start)


def alps(
    weight: jax.Array,
    gram: jax.Array,
    density: float | Pattern,
    damping: float = 0.01,
    dense_correction: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Chooses the support by ADMM, then solves for the weights on it (ALPS; Meng et al. 2024).

    Inputs are scaled to one norm, and the penalty grows until the support stays. We had the abstract of the paper,
    not its text: the scaling, the first penalty and its growth are as the method is known. Ours are the damping,
    which is that of `refit`, and the end of the preconditioned conjugate gradients: they continue until the
    weights solve their equations. So are the patterns other than `Layer` and `NM`: each set keeps the blocks with
    the largest sums of squares.

    Args:
      weight: float `[outputs, inputs]`.
      gram: `X' X` of the layer's inputs `X`, or any multiple of it, float `[inputs, inputs]`.
      density: the share of the layer's weights that is kept, in (0, 1]; or a pattern such as `patterns.Unit(0.5)`.
      damping: share of the mean diagonal of the Gram matrix that is added to its diagonal, at least 0, as in
        `refit`.
      dense_correction: as in `prune_linear`.

    Returns:
      The mask, bool `[outputs, inputs]`; and the new weights, float32 `[outputs, inputs]`, 0 where pruned.

    Raises:
      InputError: a density that is neither a pattern nor a number in (0, 1], a pattern, a Gram matrix or a dense
        correction that does not fit the weight, or a damping below 0.
    """
    pattern = patterns.of_layer(density)
    weight, gram = check_layer(weight, gram)
    patterns.rule_of(pattern).blocks((weight.shape[0], weight.shape[1]))
    dense_correction = checked_correction(weight, dense_correction)
    return _alps(weight, gram, dense_correction, pattern, checked_damping(damping))


@partial(jax.jit, static_argnames="pattern")
def _alps(weight, gram, dense_correction, pattern, damping):
    gram = damped(gram, damping)
    norms = jnp.sqrt(jnp.diag(gram))
    norms = jnp.where(norms > 0, norms, 1.0)[None]
    gram = gram / norms / norms.T
    weight, dense_correction = weight * norms, dense_correction / norms
    target = weight @ gram - dense_correction
    found = _admm(weight, gram, target, pattern)
    mask = patterns.expand(patterns.best(pattern, patterns.block_sums(pattern, found**2)), weight.shape)
    solved = _conjugate_gradients(jnp.where(mask, found, 0.0), mask, gram, target)
    return mask, solved / norms


def _admm(weight, gram, target, pattern):
    """The copy whose largest weights are kept, float32 `[outputs, inputs]`, after ADMM."""
    rule = patterns.rule_of(pattern)
    blocks = rule.blocks(weight.shape)
    size = rule.set_size(blocks)
    num_kept = rule.num_kept_of(size)
    all_kept = num_kept * (blocks[0] * blocks[1] // size)
    eigenvalues, basis = jnp.linalg.eigh(gram)
    eigenvalues = jnp.maximum(eigenvalues, 0.0)[None]

    def one_iteration(_, carry):
        _, sparse, dual, penalty, _ = carry
        dense = (target - dual + penalty * sparse) @ basis / (eigenvalues + penalty) @ basis.T
        split = dense + dual / penalty
        support = highest(patterns.block_sums(pattern, split**2), size, num_kept)
        sparse = jnp.where(patterns.expand(support, weight.shape), split, 0.0)
        return split, sparse, dual + penalty * (dense - sparse), penalty, support

    def one_round(carry):
        *state, before, _, iteration = carry
        split, sparse, dual, penalty, support = jax.lax.fori_loop(0, ROUND, one_iteration, (*state, before))
        changed = (support != before).sum(dtype=jnp.float32)
        factor = jnp.float32(1.0)
        for share, larger in reversed(GROWTH):
            factor = jnp.where(changed > share * all_kept, jnp.float32(larger), factor)
        return split, sparse, dual, penalty * factor, support, changed, iteration + ROUND

    def go_on(carry):
        *_, changed, iteration = carry
        return (changed > 0) & (iteration < ITERATIONS)

    nothing, penalty = jnp.zeros(blocks, bool), jnp.float32(PENALTY)
    start = weight, weight, jnp.zeros_like(weight), penalty, nothing, jnp.float32(1.0), jnp.int32(0)
    return jax.lax.while_loop(go_on, one_round, start)[0]


def _conjugate_gradients(found, mask, gram, target):
    """Solves each row's normal equations on its support; a Gram matrix of unit diagonal is preconditioned."""

    def products(one, other):
        return (one * other).sum(1, keepdims=True)

    def ratio(above, below):
        return jnp.where(below > 0, above / jnp.where(below > 0, below, 1.0), 0.0)

    def one_iteration(carry):
        found, residual, direction, count = carry
        moved = jnp.where(mask, direction @ gram, 0.0)
        squared = products(residual, residual)
        length = ratio(squared, products(direction, moved))
        found, residual = found + length * direction, residual - length * moved
        direction = residual + ratio(products(residual, residual), squared) * direction
        return found, residual, direction, count + 1

    def go_on(carry):
        _, residual, _, count = carry
        return (count < GRADIENTS) & (products(residual, residual) > enough).any()

    residual = jnp.where(mask, target - found @ gram, 0.0)
    enough = RESIDUAL**2 * products(residual, residual)
    return jax.lax.while_loop(go_on, one_iteration, (found, residual, residual, jnp.int32(0)))[0]


def highest(scores: jax.Array, size: int, num_kept: int) -> jax.Array:
    """Returns the mask that `patterns.highest` returns, some twenty times as fast in sets of many scores.

    The lowest score that is kept is found bit by bit. Only where scores tie for the last place are they sorted.

    Args:
      scores: float32, of any shape whose entries divide into sets.
      size: number of scores in a set.
      num_kept: number of scores that each set keeps.

    Returns:
      bool, of the shape of the scores.
    """
    bits = jax.lax.bitcast_convert_type(scores.reshape(-1, size) + 0.0, jnp.uint32)
    ordered = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))

    def go_on(carry):
        place, _, count = carry
        return (place > 0) & (count != num_kept).any()

    def one_bit(carry):
        place, lowest, count = carry
        raised = lowest | place
        found = (ordered >= raised).sum(1, keepdims=True, dtype=jnp.int32)
        enough = found >= num_kept
        return place >> 1, jnp.where(enough, raised, lowest), jnp.where(enough, found, count)

    none = jnp.zeros((len(ordered), 1), jnp.uint32)
    start = jnp.uint32(1 << 31), none, jnp.full(none.shape, size, jnp.int32)
    _, lowest, count = jax.lax.while_loop(go_on, one_bit, start)
    return jax.lax.cond(
        (count == num_kept).all(),
        lambda: (ordered >= lowest).reshape(scores.shape),
        lambda: patterns.highest(scores, size, num_kept),
    )
