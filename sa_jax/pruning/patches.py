"""The moments of a convolution's patches, without the patches.

A convolution multiplies each patch of its input by a matrix, whose columns are the input channels at each place of
the kernel. The Gram matrix of the patches consists of the products of the input with itself, shifted from one
place of the kernel to another, as kn2row splits a kernel into 1x1 kernels (Vasudevan, Anderson & Gregg 2017). Two
shifted inputs are held at a time. Each group of a grouped convolution has a matrix of its own.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax.checks import whole
from sa_jax.types import InputError

# Paddings that are a mode of `jnp.pad`, by the names that Flax gives them.
MODES = {"CIRCULAR": "wrap", "REFLECT": "reflect"}
# Paddings by name; the last is for one axis alone.
NAMES = "SAME", "VALID", *MODES, "CAUSAL"


class Convolution(NamedTuple):
    """The geometry of a convolution; its inputs are `[..., *sizes, channels]`, a size for each axis of the kernel.

    Attributes:
      kernel_size: sizes of the kernel, such as `(3, 3)`.
      strides: one for each axis, or one for all.
      padding: 'SAME', 'VALID', 'CIRCULAR', 'REFLECT' or 'CAUSAL'; or for each axis a number or the pair
        `(before, after)`; or one number for all.
      dilation: distance between neighbouring places of the kernel, one for each axis, or one for all.
      groups: number of groups of channels that are convolved by themselves; the number of channels if depthwise.
    """

    kernel_size: tuple[int, ...]
    strides: int | Sequence[int] = 1
    padding: str | int | Sequence[Any] = "VALID"
    dilation: int | Sequence[int] = 1
    groups: int = 1

    @property
    def places(self) -> int:
        """Number of places of the kernel."""
        return math.prod(self.kernel_size)


def patch_size(convolution: Convolution, channels: int) -> int:
    """Returns the number of inputs of each output: of input channels in a group, times places of the kernel.

    Raises:
      InputError: the groups do not divide the channels.
    """
    if channels % convolution.groups:
        raise InputError(f"{convolution.groups} groups do not divide {channels} input channels")
    return convolution.places * (channels // convolution.groups)


def sums(
    x: jax.Array, weight: jax.Array, convolution: Convolution, other: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums the products of patches over all places of the output. Pure.

    Args:
      x: inputs, float `[samples, *sizes, channels]`.
      weight: weight of each sample in the sums, float32 `[samples]`.
      convolution: of the layer.
      other: what the patches are multiplied with, of the shape of `x`; None for `x` itself.

    Returns:
      The sum of `p q'` over the patches `p` of `x` and `q` of `other`, float32 `[groups, inputs, inputs]`, the sum
      of `p`, float32 `[groups, inputs]`, and the number of patches, float32 `[]`. The inputs of a patch have the
      order of a Flax kernel: places first, then channels of a group.

    Raises:
      InputError: inputs that do not fit the convolution.
    """
    sizes, strides, dilation, pads = _checked(convolution, x.shape)
    groups, channels = convolution.groups, x.shape[-1] // convolution.groups
    places = jnp.asarray(np.array(list(np.ndindex(*convolution.kernel_size))) * np.array(dilation), jnp.int32)
    padded = _padded(x, convolution, pads)
    padded_other = padded if other is None else _padded(other, convolution, pads)
    span = tuple((size - 1) * stride + 1 for size, stride in zip(sizes, strides, strict=True))

    def shifted(padded: jax.Array, place: jax.Array) -> jax.Array:
        """What the outputs see at one place of the kernel, `[samples, outputs, groups, channels]`."""
        start = (jnp.int32(0), *places[place], jnp.int32(0))
        seen = jax.lax.dynamic_slice(padded, start, (len(x), *span, x.shape[-1]))
        seen = seen[(slice(None), *(slice(None, None, stride) for stride in strides))]
        return seen.reshape(len(x), -1, groups, channels)

    def product(_, pair: jax.Array) -> tuple[None, jax.Array]:
        one = shifted(padded, pair[0]) * weight[:, None, None, None]
        both = jnp.einsum("npgi,npgj->gij", one, shifted(padded_other, pair[1]), precision="highest")
        return None, both

    numbers = range(convolution.places)
    symmetric = other is None
    pairs = list(
        itertools.combinations_with_replacement(numbers, 2) if symmetric else itertools.product(numbers, numbers)
    )
    first, second = np.asarray(pairs, np.int32).T
    _, found = jax.lax.scan(product, None, jnp.stack([first, second], 1))
    grams = jnp.zeros((len(numbers), len(numbers), groups, channels, channels), jnp.float32)
    if symmetric:
        grams = grams.at[second, first].set(jnp.swapaxes(found, -1, -2))
    grams = grams.at[first, second].set(found)
    size = len(numbers) * channels
    grams = jnp.transpose(grams, (2, 0, 3, 1, 4)).reshape(groups, size, size)
    _, totals = jax.lax.scan(
        lambda _, place: (None, jnp.einsum("npgi,n->gi", shifted(padded, place), weight, precision="highest")),
        None,
        jnp.arange(len(numbers)),
    )
    totals = jnp.transpose(totals, (1, 0, 2)).reshape(groups, size)
    return grams, totals, weight.sum() * math.prod(sizes)


def _checked(convolution: Convolution, shape: tuple[int, ...]) -> tuple[tuple[Any, ...], ...]:
    """For each axis the size of the output, the stride, the dilation and the padding."""
    axes = len(convolution.kernel_size)
    if len(shape) != axes + 2:
        raise InputError(
            f"inputs must have {axes} axes and channels, as the kernel has, not shape {list(shape[1:])}"
        )
    patch_size(convolution, shape[-1])
    strides, dilation = (
        _for_each("strides", convolution.strides, axes),
        _for_each("dilation", convolution.dilation, axes),
    )
    reach = [(size - 1) * step + 1 for size, step in zip(convolution.kernel_size, dilation, strict=True)]
    padding = convolution.padding
    if isinstance(padding, str):
        if padding in ("SAME", "VALID"):
            pads = jax.lax.padtype_to_pads(shape[1:-1], reach, strides, padding)
        elif padding in MODES:
            pads = [((one - 1) // 2, one // 2) for one in reach]
        elif padding == "CAUSAL" and axes == 1:
            pads = [(reach[0] - 1, 0)]
        else:
            names = ", ".join(map(repr, NAMES))
            raise InputError(f"the padding of a convolution must be {names} or numbers, not {padding!r}")
    else:
        each = [padding] * axes if isinstance(padding, int) else list(padding)
        if len(each) != axes:
            raise InputError(f"the padding of a convolution needs {axes} entries, not {padding!r}")
        pads = [(one, one) if isinstance(one, int) else tuple(one) for one in each]
    padded = [size + sum(pad) for size, pad in zip(shape[1:-1], pads, strict=True)]
    if any(size < least for size, least in zip(padded, reach, strict=True)):
        raise InputError(f"a kernel of {list(convolution.kernel_size)} does not fit inputs of {list(shape[1:-1])}")
    sizes = tuple((size - least) // stride + 1 for size, least, stride in zip(padded, reach, strides, strict=True))
    return sizes, strides, dilation, tuple(pads)


def _for_each(name: str, value: Any, axes: int) -> tuple[int, ...]:
    each = (value,) * axes if np.ndim(value) == 0 else tuple(value)
    if len(each) != axes:
        raise InputError(f"the {name} of a convolution must have {axes} entries, not {value!r}")
    return tuple(whole(f"the {name} of a convolution", one, 1) for one in each)


def _padded(x: jax.Array, convolution: Convolution, pads: tuple[Any, ...]) -> jax.Array:
    mode = MODES.get(convolution.padding, "constant") if isinstance(convolution.padding, str) else "constant"
    return jnp.pad(jnp.asarray(x, jnp.float32), ((0, 0), *pads, (0, 0)), mode=mode)
