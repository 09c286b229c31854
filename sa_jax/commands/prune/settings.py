"""Settings of `sa-jax prune` and `sa_jax.prune_file`, validated on construction."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sa_jax import checks, pruning
from sa_jax.commands.run.settings import MAX_SEED, pattern_of
from sa_jax.files.paths import expanded
from sa_jax.networks import mlp
from sa_jax.networks.patterns import Pattern
from sa_jax.types import InputError

# Where nothing tells the density.
DENSITY = 0.1


@dataclass(frozen=True)
class PruneConfig:
    """What is pruned, and how. All attributes but the last are arguments of `sa_jax.prune_file`, described there.

    Attributes:
      model: the weights file.
      data: the data set.
      out: the file to write.
      density: kept / total; None with a target accuracy. With a pattern it is not used.
      pattern: which weights may be kept; None for the density alone.
      target_accuracy: accuracy on the validation split, for which the lowest density is searched; None for none.
      masks: the file to write the masks to, or None.
      label: the column of labels of a .csv file, or None.
      input_mean: number subtracted from the inputs.
      input_std: number that then divides the inputs.
      activation: the activation between layers; None for that of the file, or relu.
      minutes: the wall time, or None.
      seed: seed of everything random.
      workdir: the folder for the report and the checkpoints, or None.
      overwrite: whether earlier files are replaced.
      densities: several densities, each with a file of its own, see `out_of`; or None.
    """

    model: Path
    data: str
    out: Path
    density: float | None = None
    pattern: Pattern | None = None
    target_accuracy: float | None = None
    masks: Path | None = None
    label: str | None = None
    input_mean: float = 0.0
    input_std: float = 1.0
    activation: str | None = None
    minutes: float | None = None
    seed: int = 0
    workdir: Path | None = None
    overwrite: bool = False
    densities: Sequence[float] | None = None

    @property
    def outs(self) -> list[Path]:
        """The pruned files: one, or one for each density."""
        return [self.out] if self.densities is None else [self.out_of(density) for density in self.densities]

    def out_of(self, density: float) -> Path:
        """Returns the pruned file of one of several densities, which is in its name: 'pruned-0.1.pt'."""
        suffix = next((end for end in (".weights.h5",) if self.out.name.endswith(end)), self.out.suffix)
        return self.out.with_name(f"{self.out.name.removesuffix(suffix)}-{density!r}{suffix}")

    def __post_init__(self):
        for name in ("model", "out", "masks", "workdir"):
            if getattr(self, name) is not None:
                self._store(name, expanded(getattr(self, name)))
        for name in ("data", "label"):
            text = getattr(self, name)
            if (text is not None or name == "data") and not (isinstance(text, str) and text):
                raise InputError(f"{name} must be text, not {text!r}")
        if self.pattern is not None:
            options = pruning.Options(
                move="uniform", start="magnitude", pattern=pattern_of(self.pattern, "pattern")
            )
            self._store("pattern", pruning.check_options(options).pattern)
        names = ("density", "densities", "pattern", "target_accuracy")
        given = [name for name in names if getattr(self, name) is not None]
        if self.densities is not None:
            self._store("densities", sorted(self.densities, reverse=True))
            if self.masks is not None:
                raise InputError("masks is one file: with densities, the masks are in the folders of the workdir")
            if self.workdir is None:
                raise InputError("densities need a workdir, the folder for their reports: --workdir=DIR")
        if len(given) > 1:
            raise InputError(f"give only one of {' and '.join(given)}")
        for name in ("density", "target_accuracy"):
            self._check_number(name, above=0, most=1)
        if not given:
            self._store("density", DENSITY)
        self._check_number("minutes", above=0)
        self._check_number("input_mean")
        self._check_number("input_std", above=0)
        self._store("seed", checks.whole("seed", self.seed, 0, MAX_SEED))
        if self.activation is not None:
            mlp.check_activation(self.activation)
        if self.masks is not None and self.masks.suffix not in (".npz", ".safetensors"):
            raise InputError(f"{self.masks}: masks are written to .npz or .safetensors")

    def _check_number(self, name: str, above: float | None = None, most: float | None = None) -> None:
        if (value := getattr(self, name)) is not None:
            self._store(name, checks.number(name, value, above=above, most=most))

    def _store(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
