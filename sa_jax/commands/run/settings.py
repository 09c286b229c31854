"""All settings of a run, checked at the door."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from sa_jax import baselines, pruning
from sa_jax.annealing.chain import BLOCK_STEPS
from sa_jax.networks import masks, mlp
from sa_jax.pruning.options import STARTS, Options
from sa_jax.types import InputError, is_number

# Steps are counted in int32.
MOST_STEPS = 2**31 - BLOCK_STEPS


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run. The first twelve are the macros that open every config.

    Attributes:
      dataset: 'digits', 'mnist', 'fashion_mnist' or the path of an .npz.
      input_mean: subtracted from the inputs, after pixels are scaled to 0..1.
      input_std: then divides them.
      weights: 'random', 'pretrain', or a file, one of `weights.SUFFIXES`, whose shapes then fix
        the layers.
      hidden: widths of the hidden layers; unused with a weights file.
      activation: 'relu', 'tanh' or 'gelu'.
      density: kept / total, in (0, 1]; None searches the sparsest one that reaches the target accuracy.
      seed: of everything random.
      num_steps: proposals per chain; None for as many as the budget allows.
      num_chains: independent chains; the one of lowest energy is the result.
      num_samples: training samples in the energy; as many as there are, if fewer. None chooses them by the number
        of branches that stay, see `pruning.samples_for`.
      checkpoint_seconds: between two checkpoints, from which a run that was killed goes on; 0 makes none.
      chain_batch: chains of a device that are vmapped together: 1 runs one after the other, and None chooses, 1
        on a CPU and all elsewhere.
      budget: proposals times samples, of each chain; what `num_steps` is None for. Unused where that is given.
      use_bias: whether random and pretrained networks have biases.
      initializer: of random and pretrained weights, one of `models.INITIALIZERS`.
      pretrain_epochs: passes over the training split.
      pretrain_learning_rate: of Adam, at the start.
      energy: see `pruning.Options`, as for the following.
      move: 'saliency', 'informed' or 'uniform'.
      start: 'magnitude', 'saliency' or 'random'; or a method of `baselines.METHODS` that moves no weight, such as
        'edge_popup', which finds the initial mask first, on the training split, with its default effort.
      schedule: 'geometric', 'linear', 'cosine', 'logarithmic', 'constant' or a callable.
      logit_scale: None calibrates it.
      temperature_start: None calibrates it.
      temperature_end: None calibrates it.
      nudge_share: share of the proposals that change a weight, aimed by derivatives of the energy; 0 leaves all
        weights as they are.
      target_accuracy: on the validation split, in (0, 1], where density is None; None for that of the dense
        network less the tolerance.
      tolerance: accuracy that counts as no loss against the dense network, 0.005 being half a point.
    """

    dataset: str = "digits"
    input_mean: float = 0.0
    input_std: float = 1.0
    weights: str = "pretrain"
    hidden: Sequence[int] = (32, 16)
    activation: str = "relu"
    density: float | None = 0.05
    seed: int = 0
    num_steps: int | None = None
    num_chains: int = 2
    num_samples: int | None = None
    checkpoint_seconds: float = 60.0
    chain_batch: int | None = None
    budget: int = 500_000_000
    use_bias: bool = True
    initializer: str = "he_normal"
    pretrain_epochs: int = 100
    pretrain_learning_rate: float = 3e-3
    energy: str = "cross_entropy"
    move: str = "saliency"
    start: str = "magnitude"
    schedule: str | Callable = "geometric"
    logit_scale: float | None = None
    temperature_start: float | None = None
    temperature_end: float | None = None
    nudge_share: float = 0.0
    target_accuracy: float | None = None
    tolerance: float = 0.005

    def __post_init__(self):
        for name in ("dataset", "weights"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise InputError(f"{name.upper()} must be text in quotes, not {value!r}")
        for name in ("num_steps", "num_chains", "num_samples", "budget", "pretrain_epochs"):
            value, chosen = getattr(self, name), name in ("num_steps", "num_samples")
            if value is None and chosen:
                continue
            if not _is_whole(value) or value < 1:
                otherwise = ", or None to choose it" if chosen else ""
                raise InputError(f"{name.upper()} must be a whole number of at least 1{otherwise}, not {value!r}")
        every = self.checkpoint_seconds
        if not is_number(every) or every < 0:
            raise InputError(f"CHECKPOINT_SECONDS must be a number of at least 0, not {every!r}")
        if self.chain_batch is not None and (not _is_whole(self.chain_batch) or self.chain_batch < 1):
            raise InputError(
                f"chain_batch must be a whole number of at least 1, or None to choose it, not {self.chain_batch!r}"
            )
        if not _is_whole(self.seed) or not 0 <= self.seed < 2**32:
            raise InputError(f"SEED must be a whole number from 0 to 4294967295, not {self.seed!r}")
        if self.num_steps is not None and self.num_steps >= 2**31:
            raise InputError(f"NUM_STEPS must be below 2147483648, not {self.num_steps}")
        widths = self.hidden
        if not isinstance(widths, list | tuple) or not all(_is_whole(w) and w > 0 for w in widths):
            raise InputError(f"HIDDEN must be a list of positive whole numbers such as [300, 100], not {widths!r}")
        for name in ("input_mean", "input_std", "pretrain_learning_rate"):
            value = getattr(self, name)
            if not is_number(value):
                raise InputError(f"{name.upper()} must be a finite number, not {value!r}")
            if name != "input_mean" and value <= 0:
                raise InputError(f"{name.upper()} must be above 0, not {value!r}")
        if not isinstance(self.use_bias, bool):
            raise InputError(f"use_bias must be True or False, not {self.use_bias!r}")
        if not isinstance(self.initializer, str) or self.initializer not in mlp.INITIALIZERS:
            raise InputError(f"initializer must be one of {', '.join(mlp.INITIALIZERS)}, not {self.initializer!r}")
        if self.density is not None:
            masks.num_kept(self.density, 2**62)  # the range; how many are kept is known with the network
        target = self.target_accuracy
        if target is not None and (not is_number(target) or not 0 < target <= 1):
            raise InputError(f"target_accuracy must be a number in (0, 1], or None, not {target!r}")
        if target is not None and self.density is not None:
            raise InputError(
                f"target_accuracy = {target} and DENSITY = {self.density} exclude each other: set DENSITY = None "
                "to search for the density, or drop target_accuracy"
            )
        if not is_number(self.tolerance) or not 0 <= self.tolerance < 1:
            raise InputError(f"tolerance must be a number from 0 to below 1, not {self.tolerance!r}")
        if self.start not in (allowed := [*STARTS, *self._found_first()]):
            raise InputError(f"start must be one of {', '.join(allowed)}, not {self.start!r}")
        pruning.check_options(self.options)

    def sizes(self, kept: int, available: int) -> tuple[int, int]:
        """How many samples the energy takes and how many proposals a chain makes, chosen where they are None.

        Args:
          kept: branches that stay.
          available: training samples.
        """
        samples, steps = self.num_samples, self.num_steps
        samples = min(pruning.samples_for(kept, self.move) if samples is None else samples, available)
        if steps is None:
            steps = min(max(self.budget // samples // BLOCK_STEPS, 1) * BLOCK_STEPS, MOST_STEPS)
        return samples, steps

    @property
    def options(self) -> Options:
        """The part of the settings that the pure functions take."""
        options = Options(*(getattr(self, name) for name in Options._fields))
        return options if self.first_method is None else options._replace(start=STARTS[0])

    @property
    def first_method(self) -> baselines.Method | None:
        """The method that finds the initial mask, where it is none of annealing's own."""
        return self._found_first().get(self.start)

    @property
    def uses_labels(self) -> bool:
        """Whether annealing, its start included, sees labels."""
        first = self.first_method
        return self.energy != "kl_to_teacher" or (first is not None and first.uses_labels)

    @property
    def uses_gradients(self) -> bool:
        """Whether annealing, its start included, takes a derivative of the energy."""
        first = self.first_method
        return pruning.uses_gradients(self.options) or (first is not None and first.uses_gradients)

    @staticmethod
    def _found_first() -> dict[str, baselines.Method]:
        methods = baselines.METHODS.items()
        return {name: one for name, one in methods if not one.moves_weights and name not in STARTS}


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
