"""Settings of `sa-jax layers`, validated on construction, and its patterns, read from text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sa_jax.checks import choice, number, whole
from sa_jax.networks.patterns import NM, Block, Channels, Columns, Kernels, Layer, Pattern, Rows, Unit
from sa_jax.types import InputError

ALLOCATIONS = ("uniform", "by_error")
EXAMPLES = "'unit:0.5', 'layer:0.5', '2:4', '4x4:0.5', 'columns:0.5' or 'rows:0.5'"
MAX_NUMBER = 2**32 - 1  # of the seed and the batch size


@dataclass(frozen=True)
class LayersConfig:
    """Which layers of which model are pruned, and how.

    Attributes:
      weights: a .safetensors, .npz or PyTorch file with arrays LAYER.weight, `[outputs, inputs]` as in PyTorch, or
        LAYER/kernel, `[inputs, outputs]` as in Flax. Other arrays stay as they are. Or a .gguf file of a Llama,
        whose arrays get the names and layouts of transformers, see `files.gguf_models`.
      grams: a .safetensors or .npz file with the Gram matrix of each layer's inputs, float `[inputs, inputs]`,
        under the layer's name; None where `forward` and `inputs` are given.
      forward: 'module:function', a function that records each layer's inputs, see
        `sa_jax.pruning.collect_recorded`.
      inputs: a .safetensors or .npz file with the other arguments of `forward` by name, each `[samples, ...]`.
      batch_size: number of samples in each call of `forward`.
      layers: names of the layers to prune; None for all whose inputs are known.
      pattern: what each layer keeps, see `parse`.
      allocation: 'uniform'; or 'by_error', which chooses each layer's density, see `allocation.allocate`, and
        needs a pattern such as 'unit:0.5'.
      sequential: whether each layer is pruned on the inputs that come from the pruned layers before it, so that
        its outputs come near those of the dense network; needs `forward`. Otherwise all layers are pruned on the
        inputs of the dense network.
      sweeps: number of draws for each row, divided by the number of its inputs, see `pruning.prune_linear`.
      damping: share of the mean diagonal of each Gram matrix that is added to its diagonal.
      refit: whether the kept weights are refitted, see `pruning.refit`.
      seed: seed of everything random.
    """

    weights: str = ""
    grams: str | None = None
    forward: str | None = None
    inputs: str | None = None
    batch_size: int = 64
    layers: Sequence[str] | None = None
    pattern: float | str = "unit:0.5"
    allocation: str = "uniform"
    sequential: bool = False
    sweeps: float = 2.0
    damping: float = 0.01
    refit: bool = False
    seed: int = 0

    def __post_init__(self):
        for name in ("weights", "grams", "forward", "inputs"):
            value = getattr(self, name)
            if (value is not None or name == "weights") and (not isinstance(value, str) or not value):
                raise InputError(f"layers.{name} must be text in quotes, not {value!r}")
        if self.layers is not None:
            given = self.layers if isinstance(self.layers, list | tuple) else [self.layers]
            if given is not self.layers or not all(isinstance(name, str) for name in given):
                raise InputError(f"layers.layers must be a list of names, or None, not {self.layers!r}")
        if self.forward is None and self.inputs is None:
            if self.grams is None:
                raise InputError(
                    "no layer inputs given: set layers.grams, or both layers.forward and layers.inputs"
                )
            if self.sequential:
                raise InputError(
                    "layers.sequential needs layers.forward and layers.inputs: "
                    "layers.grams are those of the dense network"
                )
        elif self.grams is not None or self.forward is None or self.inputs is None:
            raise InputError("set either layers.grams, or both layers.forward and layers.inputs")
        # What a check returns is stored: a plain number, which JSON can hold.
        for name, value in (
            ("batch_size", whole("layers.batch_size", self.batch_size, 1, MAX_NUMBER)),
            ("seed", whole("layers.seed", self.seed, 0, MAX_NUMBER)),
            ("sweeps", number("layers.sweeps", self.sweeps, above=0)),
            ("damping", number("layers.damping", self.damping, least=0)),
        ):
            object.__setattr__(self, name, value)
        for name in ("sequential", "refit"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"layers.{name} must be True or False, not {getattr(self, name)!r}")
        choice("layers.allocation", self.allocation, ALLOCATIONS)
        if not isinstance(parse(self.pattern), Unit) and self.allocation == "by_error":
            raise InputError(
                f"layers.allocation = 'by_error' needs a pattern such as 'unit:0.5', not {self.pattern!r}"
            )


def parse(text: float | str, name: str = "layers.pattern") -> Pattern:
    """Reads a pattern from a text or a number.

    Args:
      text: 0.5 or 'layer:0.5', the share of the layer's weights that is kept; 'unit:0.5', the share of each unit's
        inputs; '2:4', two of each four neighbouring inputs; '4x4:0.5', blocks of 4 outputs by 4 inputs, the share
        of each row of blocks; 'columns:0.5' or 'rows:0.5', the share of whole inputs or whole outputs; of
        convolutions, 'kernels:0.5' or 'channels:0.5', the share of k x k slices or of whole input channels.
      name: what users call the setting.

    Raises:
      InputError: another text, or a number that is out of range.

    >>> parse("2:4"), parse(0.5), parse("unit:0.5")
    (NM(kept=2, group=4), Layer(density=0.5), Unit(density=0.5))
    >>> str(parse("8x2:0.25"))
    '8x2:0.25'
    """
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise InputError(f"{name} must be a number or a text such as {EXAMPLES}, not {text!r}")
    head, _, tail = str(text).rpartition(":")
    try:
        if head.isdecimal() and tail.isdecimal():
            return NM(int(head), int(tail))
        by_name = {"": Layer, "unit": Unit, "layer": Layer, "columns": Columns, "rows": Rows}
        by_name |= {"kernels": Kernels, "channels": Channels}
        density = _float(tail)
        if density is not None and head in by_name:
            return by_name[head](density)
        if density is not None and (block := re.fullmatch("([0-9]+)x([0-9]+)", head)):
            return Block((int(block[1]), int(block[2])), density)
    except InputError as error:
        raise InputError(f"{name} is a wrong pattern, {text!r}: {error}") from None
    raise InputError(f"{name} must be a number or a text such as {EXAMPLES}, not {text!r}")


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
