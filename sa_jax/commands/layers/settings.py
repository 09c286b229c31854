"""Settings of `sa-jax layers`, validated on construction."""

from collections.abc import Sequence
from dataclasses import dataclass

from sa_jax.networks import patterns
from sa_jax.types import InputError, is_number

ALLOCATIONS = ("uniform", "by_error")


@dataclass(frozen=True)
class LayersConfig:
    """Which layers of which model are pruned, and how.

    Attributes:
      weights: a .safetensors, .npz or PyTorch file with arrays LAYER.weight, `[outputs, inputs]` as in PyTorch, or
        LAYER/kernel, `[inputs, outputs]` as in Flax; other arrays stay as they are.
      grams: a .safetensors or .npz with the Gram matrix of each layer's inputs, float `[inputs, inputs]`, by
        layer; None where `forward` and `inputs` are given.
      forward: 'module:function', which shows each layer's inputs, see `inputs.collect`.
      inputs: a .safetensors or .npz with the other arguments of `forward` by name, each `[samples, ...]`.
      batch_size: samples of a call of `forward`.
      layers: names; None for all whose inputs are known.
      pattern: what may stay of each, see `patterns.parse`.
      allocation: 'uniform', or 'by_error' for densities by layer, see `allocation.allocate`.
      sequential: whether each layer sees its pruned predecessors, and is to give what it gave in the dense
        network, which takes `forward`; else it sees the dense network.
      sweeps: see `reconstruction.prune_linear`.
      damping: added to the diagonal of each Gram matrix, as a share of its mean.
      refit: whether the weights that stay are moved, see `reconstruction.refit`.
      seed: of everything random.
    """

    weights: str = ""
    grams: str | None = None
    forward: str | None = None
    inputs: str | None = None
    batch_size: int = 64
    layers: Sequence[str] | None = None
    pattern: float | str = 0.5
    allocation: str = "uniform"
    sequential: bool = False
    sweeps: float = 2.0
    damping: float = 0.01
    refit: bool = False
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.weights, str) or not self.weights:
            raise InputError(f"weights must name a file, not {self.weights!r}")
        if self.forward is None and self.inputs is None:
            if self.grams is None:
                raise InputError("what the layers see is missing: set grams, or forward and inputs")
            if self.sequential:
                raise InputError("sequential needs forward and inputs: grams are of the dense network")
        elif self.grams is not None or self.forward is None or self.inputs is None:
            raise InputError("set either grams, or both forward and inputs")
        for name in ("batch_size", "seed"):
            value, least = getattr(self, name), 1 if name == "batch_size" else 0
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**32:
                raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")
        for name in ("sweeps", "damping"):
            value = getattr(self, name)
            if not is_number(value) or value < 0 or (name == "sweeps" and value == 0):
                wanted = "above 0" if name == "sweeps" else "of at least 0"
                raise InputError(f"{name} must be a number {wanted}, not {value!r}")
        for name in ("sequential", "refit"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if self.allocation not in ALLOCATIONS:
            raise InputError(f"allocation must be one of {', '.join(ALLOCATIONS)}, not {self.allocation!r}")
        pattern = patterns.parse(self.pattern)
        if self.allocation == "by_error" and pattern != patterns.Pattern(density=pattern.density):
            raise InputError(f"allocation = 'by_error' chooses densities such as 0.5, not {self.pattern!r}")
