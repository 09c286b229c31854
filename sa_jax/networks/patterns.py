"""Sparsity patterns: which sets of a layer's weights may be kept, as values.

A pattern may stand wherever a density may. A plain number is always the share of all branches that are kept; for
one layer it is `Layer(number)`. Patterns are hashable, hence static under `jit`, and `str(pattern)` is the text
that the commands read:

>>> for pattern in Unit(0.5), Layer(0.5), NM(2, 4), Block((4, 4), 0.5), Columns(0.5), Rows(0.5):
...     print(pattern)
unit:0.5
layer:0.5
2:4
4x4:0.5
columns:0.5
rows:0.5

Of a convolution, the weight `[outputs, inputs]` has a column for each input channel at each place of the kernel.
Two patterns are for convolutions above all:

>>> print(Kernels(0.5), Channels(0.5))
kernels:0.5 channels:0.5
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.checks import number, whole
from sa_jax.types import InputError

EXAMPLES = "Unit(0.5), Layer(0.5), NM(2, 4), Block((4, 4), 0.5), Columns(0.5) or Rows(0.5)"


@dataclass(frozen=True)
class Unit:
    """Keeps the same share of each unit's inputs: of each row of a weight `[outputs, inputs]`.

    In a Flax kernel, `[inputs, outputs]`, that is the same share of each column.

    Attributes:
      density: the share of each row that is kept, in (0, 1]; rounded to a whole number of weights.

    Raises:
      InputError: a density outside (0, 1].
    """

    density: float

    def __post_init__(self):
        _set_density(self)

    def __str__(self):
        return f"unit:{self.density}"


@dataclass(frozen=True)
class Layer:
    """Keeps a share of the whole layer; its rows may differ in density.

    Attributes:
      density: the share of the layer's weights that is kept, in (0, 1]; rounded to a whole number of weights.

    Raises:
      InputError: a density outside (0, 1].
    """

    density: float

    def __post_init__(self):
        _set_density(self)

    def __str__(self):
        return f"layer:{self.density}"


@dataclass(frozen=True)
class NM:
    """N:M sparsity: keeps `kept` of each `group` neighbouring inputs of a unit, such as 2 of 4.

    Attributes:
      kept: number of weights that each group keeps, from 1 to `group`.
      group: number of weights in a group; it divides the layer's inputs.

    Raises:
      InputError: a number that is not whole or out of range.
    """

    kept: int
    group: int

    def __post_init__(self):
        object.__setattr__(self, "group", whole("group", self.group, 1))
        object.__setattr__(self, "kept", whole("kept", self.kept, 1, self.group))

    def __str__(self):
        return f"{self.kept}:{self.group}"


@dataclass(frozen=True)
class Block:
    """Keeps or prunes whole blocks of neighbouring weights; each row of blocks keeps the same share.

    Attributes:
      shape: height and width of a block, in outputs and inputs; they divide the layer's outputs and inputs.
      density: the share of each row of blocks that is kept, in (0, 1]; rounded to a whole number of blocks.

    Raises:
      InputError: a shape that is not a pair of whole numbers above 0, or a density outside (0, 1].
    """

    shape: tuple[int, int]
    density: float

    def __post_init__(self):
        if not isinstance(self.shape, tuple | list) or len(self.shape) != 2:
            raise InputError(f"the shape of a block must be a pair such as (4, 4), not {self.shape!r}")
        height, width = (
            whole(f"the {side} of a block", size, 1)
            for side, size in zip(("height", "width"), self.shape, strict=True)
        )
        object.__setattr__(self, "shape", (height, width))
        _set_density(self)

    def __str__(self):
        return f"{self.shape[0]}x{self.shape[1]}:{self.density}"


@dataclass(frozen=True)
class Columns:
    """Keeps or prunes whole columns of a weight `[outputs, inputs]`: whole inputs of the layer.

    Attributes:
      density: the share of the inputs that is kept, in (0, 1]; rounded to a whole number of inputs.

    Raises:
      InputError: a density outside (0, 1].
    """

    density: float

    def __post_init__(self):
        _set_density(self)

    def __str__(self):
        return f"columns:{self.density}"


@dataclass(frozen=True)
class Rows:
    """Keeps or prunes whole rows of a weight `[outputs, inputs]`: whole outputs of the layer.

    Attributes:
      density: the share of the outputs that is kept, in (0, 1]; rounded to a whole number of outputs.

    Raises:
      InputError: a density outside (0, 1].
    """

    density: float

    def __post_init__(self):
        _set_density(self)

    def __str__(self):
        return f"rows:{self.density}"


@dataclass(frozen=True)
class Kernels:
    """Keeps or prunes whole k x k slices of a convolution, one for each output and input channel.

    Each output channel keeps the same share of its slices. Other layers have slices of one weight.

    Attributes:
      density: the share of each output's slices that is kept, in (0, 1]; rounded to a whole number of slices.

    Raises:
      InputError: a density outside (0, 1].
    """

    density: float

    def __post_init__(self):
        _set_density(self)

    def __str__(self):
        return f"kernels:{self.density}"


@dataclass(frozen=True)
class Channels:
    """Keeps or prunes whole input channels of a convolution. In other layers they are whole inputs.

    Attributes:
      density: the share of the input channels that is kept, in (0, 1]; rounded to a whole number of channels.

    Raises:
      InputError: a density outside (0, 1].
    """

    density: float

    def __post_init__(self):
        _set_density(self)

    def __str__(self):
        return f"channels:{self.density}"


Pattern = Unit | Layer | NM | Block | Columns | Rows | Kernels | Channels


def _set_density(pattern: Any) -> None:
    object.__setattr__(pattern, "density", float(number("density", pattern.density, above=0, most=1)))


class Rule(NamedTuple):
    """The common internal form of all patterns: the number of blocks that each set keeps. Hashable.

    A block is one weight, several neighbouring weights, a whole column or a whole row. Blocks compete within a
    set, and each set keeps the same number of blocks.

    Attributes:
      num_kept: number of blocks that each set keeps; None where `density` gives it.
      density: share of its blocks that each set keeps, rounded to a whole number; None where `num_kept` is given.
      group: number of neighbouring blocks of a row in one set; None for the whole row.
      block: height and width of a block, in weights; 0 for the whole height or width.
      whole_layer: whether all blocks of the layer are one set.
    """

    num_kept: int | None = None
    density: float | None = None
    group: int | None = None
    block: tuple[int, int] = (1, 1)
    whole_layer: bool = False

    def blocks(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Returns the number of rows and of columns of blocks in a weight `[outputs, inputs]`.

        Raises:
          InputError: blocks or sets do not divide the weight, or no block would be kept.
        """
        height, width = (size or total for size, total in zip(self.block, shape, strict=True))
        for size, total, name in ((height, shape[0], "outputs"), (width, shape[1], "inputs")):
            if total % size:
                raise InputError(f"blocks of {height}x{width} do not divide a weight of {total} {name}")
        rows, columns = shape[0] // height, shape[1] // width
        if self.group is not None and columns % self.group:
            raise InputError(
                f"{self.num_kept}:{self.group} needs a multiple of {self.group} inputs, not {columns}"
            )
        size = self.set_size((rows, columns))
        if not self.num_kept_of(size):
            what = "weights" if self.block == (1, 1) else "blocks"
            raise InputError(
                f"density {self.density} keeps none of the {size} {what} of a set; the least that keeps one is "
                f"{1 / size:.2g}"
            )
        return rows, columns

    def set_size(self, blocks: tuple[int, int]) -> int:
        """Returns the number of blocks in a set, from the number of rows and of columns of blocks."""
        return blocks[0] * blocks[1] if self.whole_layer else self.group or blocks[1]

    def num_kept_of(self, size: int) -> int:
        """Returns the number of blocks that a set of this size keeps."""
        if self.num_kept is None and self.density is not None:
            return round(self.density * size)
        return self.num_kept or 0


def rule_of(pattern: Pattern) -> Rule:
    """Returns the internal form of a pattern.

    Raises:
      InputError: not a pattern.

    >>> rule_of(NM(2, 4)).group, rule_of(Columns(0.5)).block
    (4, (0, 1))
    """
    match pattern:
        case Unit():
            return Rule(density=pattern.density)
        case Layer():
            return Rule(density=pattern.density, whole_layer=True)
        case NM():
            return Rule(num_kept=pattern.kept, group=pattern.group)
        case Block():
            return Rule(density=pattern.density, block=pattern.shape)
        case Kernels():
            return Rule(density=pattern.density)
        case Columns() | Channels():
            return Rule(density=pattern.density, block=(0, 1))
        case Rows():
            return Rule(density=pattern.density, block=(1, 0), whole_layer=True)
    raise InputError(f"pattern must be one of sa_jax.patterns, such as {EXAMPLES}, not {pattern!r}")


def refuse_text(density: Any) -> None:
    """Refuses a text in place of a density; only the commands read text.

    Raises:
      InputError: the density is a text.
    """
    if isinstance(density, str):
        raise InputError(
            f"density must be a number or a pattern, not the text {density!r}: write {EXAMPLES} of sa_jax.patterns"
        )


def of_layer(density: float | Pattern) -> Pattern:
    """Returns the pattern of one layer; a number is the share of the layer that is kept.

    Raises:
      InputError: neither a pattern nor a number in (0, 1].

    >>> of_layer(0.5), of_layer(NM(2, 4))
    (Layer(density=0.5), NM(kept=2, group=4))
    """
    refuse_text(density)
    return density if isinstance(density, Pattern) else Layer(density)


def best(pattern: Pattern, scores: jax.Array) -> jax.Array:
    """Returns the mask of the highest scores that a pattern allows.

    Args:
      pattern: of the layer.
      scores: one per block, float `[rows, columns]`, see `Rule.blocks`; the lower index wins a tie.

    Returns:
      bool `[rows, columns]`.

    >>> best(NM(1, 2), jnp.array([[1.0, 3.0, 2.0, 2.0]]))
    Array([[False,  True,  True, False]], dtype=bool)
    """
    rule = rule_of(pattern)
    size = rule.set_size((scores.shape[0], scores.shape[1]))
    return highest(scores, size, rule.num_kept_of(size))


def highest(scores: jax.Array, size: int, num_kept: jax.Array | int) -> jax.Array:
    """Returns the mask of the `num_kept` highest scores in each set of neighbours; the lower index wins a tie.

    Args:
      scores: float, of any shape whose entries divide into sets.
      size: number of scores in a set; static.
      num_kept: number of scores that each set keeps, int32 `[]`.

    Returns:
      bool, of the shape of the scores.
    """
    ranks = jnp.argsort(jnp.argsort(-scores.reshape(-1, size), axis=1, stable=True), axis=1)
    return (ranks < num_kept).reshape(scores.shape)


def expand(blocks: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Expands a mask of blocks, bool `[rows, columns]`, to that of a weight of a shape, `[outputs, inputs]`."""
    rows, columns = blocks.shape
    return jnp.repeat(jnp.repeat(blocks, shape[0] // rows, axis=0), shape[1] // columns, axis=1)


def block_sums(pattern: Pattern, values: jax.Array) -> jax.Array:
    """Sums one value per weight, float `[outputs, inputs]`, over each block: float `[rows, columns]`."""
    rows, columns = rule_of(pattern).blocks((values.shape[0], values.shape[1]))
    return values.reshape(rows, values.shape[0] // rows, columns, values.shape[1] // columns).sum((1, 3))


def network_sets(pattern: Pattern, shapes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Numbers the sets in which the blocks of a whole network's kernels compete, for `moves.swap_within`.

    Blocks that are single weights have the order of a flat mask. Other blocks have the same order, inputs first.

    Args:
      pattern: of each kernel.
      shapes: `(inputs, outputs)` of each kernel.

    Returns:
      The number of each block's set, int `[blocks]`.

    Raises:
      InputError: the pattern does not fit one of the kernels.

    >>> network_sets(NM(1, 2), [(4, 1), (2, 2)]).tolist()
    [0, 0, 1, 1, 2, 3, 2, 3]
    """
    rule, first_set, found = rule_of(pattern), 0, []
    for layer, (inputs, outputs) in enumerate(shapes):
        try:
            blocks = rule.blocks((outputs, inputs))
        except InputError as error:
            raise InputError(f"layer {layer + 1}, {inputs} inputs and {outputs} outputs: {error}") from None
        sets = first_set + np.arange(blocks[0] * blocks[1]).reshape(blocks) // rule.set_size(blocks)
        first_set = int(sets.max()) + 1
        found.append(sets.T.ravel())
    return np.concatenate(found)


def network_best(pattern: Pattern, scores: Sequence[jax.Array]) -> jax.Array:
    """Returns the mask of a network's blocks whose summed scores are highest, as far as the pattern allows.

    Args:
      pattern: of each kernel.
      scores: of the branches of each kernel, float `[inputs, outputs]`.

    Returns:
      bool `[blocks]`, in the order of `network_sets`.
    """
    return jnp.concatenate([best(pattern, block_sums(pattern, kernel.T)).T.ravel() for kernel in scores])


def network_mask(pattern: Pattern, blocks: jax.Array, shapes: Sequence[tuple[int, int]]) -> jax.Array:
    """Expands the mask of a network's blocks to its flat mask, bool `[total]`.

    Args:
      pattern: of each kernel.
      blocks: bool `[blocks]`, in the order of `network_sets`.
      shapes: `(inputs, outputs)` of each kernel.

    >>> network_mask(Columns(0.5), jnp.array([True, False]), [(2, 3)]).tolist()
    [True, True, True, False, False, False]
    """
    rule, masks, start = rule_of(pattern), [], 0
    for inputs, outputs in shapes:
        rows, columns = rule.blocks((outputs, inputs))
        part = blocks[start : start + rows * columns].reshape(columns, rows).T
        masks.append(expand(part, (outputs, inputs)).T.ravel())
        start += rows * columns
    return jnp.concatenate(masks)
