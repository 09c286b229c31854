"""Which shapes of mask a layer may have: a density by row or by layer, N:M, blocks, whole columns or rows."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.types import InputError

EXAMPLES = "0.5, 'layer:0.5', '2:4', '4x4:0.5', 'columns:0.5' or 'rows:0.5'"


class Pattern(NamedTuple):
    """What stays of a weight `[outputs, inputs]`; hashable.

    Units are the weights, or the blocks, whole columns or whole rows of them; a set is what units compete in, and
    each set keeps equally many.

    Attributes:
      kept: units that each set keeps, where `density` is None.
      density: share of its units that each set keeps, rounded to a whole number; or None.
      group: units of a row in one set, side by side; None for the whole row.
      block: height and width of a unit, in weights; 0 for the whole height or width.
      whole_layer: whether all rows of units are one set.
    """

    kept: int | None = None
    density: float | None = None
    group: int | None = None
    block: tuple[int, int] = (1, 1)
    whole_layer: bool = False

    def units(self, shape: tuple[int, int]) -> tuple[int, int]:
        """How many rows and columns of units a weight `[outputs, inputs]` has.

        Raises:
          InputError: units or sets do not divide the weight, or nothing would stay.
        """
        height, width = (size or whole for size, whole in zip(self.block, shape, strict=True))
        for size, whole, name in ((height, shape[0], "outputs"), (width, shape[1], "inputs")):
            if whole % size:
                raise InputError(f"blocks of {height}x{width} do not divide a weight of {whole} {name}")
        rows, columns = shape[0] // height, shape[1] // width
        if self.group is not None and columns % self.group:
            raise InputError(f"{self.kept}:{self.group} needs a multiple of {self.group} inputs, not {columns}")
        if not self.kept_of(self.set_size((rows, columns))):
            raise InputError(f"density {self.density} keeps none of {self.set_size((rows, columns))}")
        return rows, columns

    def set_size(self, units: tuple[int, int]) -> int:
        """Units in a set, of so many rows and columns of units."""
        return units[0] * units[1] if self.whole_layer else self.group or units[1]

    def kept_of(self, size: int) -> int:
        """Units that a set of that size keeps."""
        return round(self.density * size) if self.kept is None and self.density is not None else self.kept or 0


def parse(pattern: Pattern | str | float) -> Pattern:
    """Reads a pattern: a density of each row, or a text.

    Args:
      pattern: 0.5, the share of each row that is kept; 'layer:0.5', of the whole layer; '2:4', two of each four
        inputs side by side; '4x4:0.5', blocks of 4 outputs by 4 inputs, a share of each row of blocks;
        'columns:0.5' or 'rows:0.5', whole inputs or outputs.

    Raises:
      InputError: none of these, or a density outside (0, 1].

    >>> parse("2:4")
    Pattern(kept=2, density=None, group=4, block=(1, 1), whole_layer=False)
    >>> parse("8x2:0.25").block, parse("columns:0.5").block
    ((8, 2), (0, 1))
    """
    if isinstance(pattern, Pattern):
        return pattern
    wrong = InputError(f"pattern must be one such as {EXAMPLES}, not {pattern!r}")
    if isinstance(pattern, bool) or not isinstance(pattern, str | int | float):
        raise wrong
    head, _, tail = str(pattern).rpartition(":")
    if head.isdecimal():
        if not tail.isdecimal() or not 0 < int(head) <= int(tail):
            raise wrong
        return Pattern(kept=int(head), group=int(tail))
    try:
        density = float(tail)
    except ValueError:
        raise wrong from None
    if not 0 < density <= 1:
        raise InputError(f"density must be a number in (0, 1], not {tail}")
    if not head:
        return Pattern(density=density)
    if head == "layer":
        return Pattern(density=density, whole_layer=True)
    if head == "columns":
        return Pattern(density=density, block=(0, 1))
    if head == "rows":
        return Pattern(density=density, block=(1, 0), whole_layer=True)
    blocks = re.fullmatch("([1-9][0-9]*)x([1-9][0-9]*)", head)
    if not blocks:
        raise wrong
    return Pattern(density=density, block=(int(blocks[1]), int(blocks[2])))


def best(pattern: Pattern, scores: jax.Array) -> jax.Array:
    """The mask of the highest scores that a pattern allows.

    Args:
      pattern: what may stay.
      scores: of units, float `[rows, columns]`, see `Pattern.units`; the lower index wins a tie.

    Returns:
      bool `[rows, columns]`.

    >>> best(parse("1:2"), jnp.array([[1.0, 3.0, 2.0, 2.0]]))
    Array([[False,  True,  True, False]], dtype=bool)
    """
    size = pattern.set_size((scores.shape[0], scores.shape[1]))
    return highest(scores, size, pattern.kept_of(size))


def highest(scores: jax.Array, size: int, kept: jax.Array | int) -> jax.Array:
    """The mask of the `kept` highest scores in each set of `size` side by side; the lower index wins a tie.

    Args:
      scores: float, of any shape whose entries divide into sets.
      size: of a set; static.
      kept: of each set, int32 `[]`.

    Returns:
      bool, of the shape of the scores.
    """
    ranks = jnp.argsort(jnp.argsort(-scores.reshape(-1, size), axis=1, stable=True), axis=1)
    return (ranks < kept).reshape(scores.shape)


def of_weights(pattern: Pattern, units: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """The mask of a weight `[outputs, inputs]` of that shape, from that of its units, bool `[rows, columns]`."""
    rows, columns = units.shape
    return jnp.repeat(jnp.repeat(units, shape[0] // rows, axis=0), shape[1] // columns, axis=1)


def sums(pattern: Pattern, values: jax.Array) -> jax.Array:
    """Sums values of weights, float `[outputs, inputs]`, over each unit: float `[rows, columns]`."""
    rows, columns = pattern.units((values.shape[0], values.shape[1]))
    return values.reshape(rows, values.shape[0] // rows, columns, values.shape[1] // columns).sum((1, 3))


def network_sets(pattern: Pattern, shapes: Sequence[tuple[int, int]]) -> np.ndarray:
    """The sets in which the units of a whole network's kernels compete, for `moves.swap_within`.

    Units of single weights have the order of a flat mask; others likewise, inputs first.

    Args:
      pattern: of each kernel.
      shapes: `(inputs, outputs)` of each kernel.

    Returns:
      Number of each unit's set, int `[units]`.

    Raises:
      InputError: the pattern does not fit one of the kernels.

    >>> network_sets(parse("1:2"), [(4, 1), (2, 2)]).tolist()
    [0, 0, 1, 1, 2, 3, 2, 3]
    """
    numbers, found = 0, []
    for layer, (inputs, outputs) in enumerate(shapes):
        try:
            units = pattern.units((outputs, inputs))
        except InputError as error:
            raise InputError(f"layer {layer + 1}, {inputs} inputs and {outputs} outputs: {error}") from None
        sets = numbers + np.arange(units[0] * units[1]).reshape(units) // pattern.set_size(units)
        numbers = int(sets.max()) + 1
        found.append(sets.T.ravel())
    return np.concatenate(found)


def network_best(pattern: Pattern, scores: Sequence[jax.Array]) -> jax.Array:
    """The units of highest scores, summed over each, that the pattern allows, in the order of `network_sets`.

    Args:
      pattern: of each kernel.
      scores: of the branches of each kernel, float `[inputs, outputs]`.

    Returns:
      bool `[units]`.
    """
    return jnp.concatenate([best(pattern, sums(pattern, kernel.T)).T.ravel() for kernel in scores])


def network_mask(pattern: Pattern, units: jax.Array, shapes: Sequence[tuple[int, int]]) -> jax.Array:
    """The flat mask of a network, bool `[total]`, from that of its units in the order of `network_sets`.

    >>> network_mask(parse("columns:0.5"), jnp.array([True, False]), [(2, 3)]).tolist()
    [True, True, True, False, False, False]
    """
    masks, start = [], 0
    for inputs, outputs in shapes:
        rows, columns = pattern.units((outputs, inputs))
        part = units[start : start + rows * columns].reshape(columns, rows).T
        masks.append(of_weights(pattern, part, (outputs, inputs)).T.ravel())
        start += rows * columns
    return jnp.concatenate(masks)
