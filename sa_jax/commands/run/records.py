"""What the stages of a run hand to each other: results, progress, and where to save."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sa_jax.pruning.problem import Problem


class Searched(NamedTuple):
    """The result of score search.

    Attributes:
      mask: the mask found, flat, bool `[total]`.
      scores: score of each branch, in units of their standard deviation, float32 `[total]`.
      num_steps: number of steps.
      seconds: wall time of compiling and searching.
      cpu_seconds: CPU time of both, all threads.
      work_seconds: CPU time of searching alone.
    """

    mask: np.ndarray  # bool [total]
    scores: np.ndarray  # float32 [total]
    num_steps: int
    seconds: float
    cpu_seconds: float
    work_seconds: float


class Annealed(NamedTuple):
    """The result of annealing all chains.

    Attributes:
      masks: the best mask of each chain, flat, bool `[chains, total]`.
      weights: the weights that belong to the best of these masks, float32 `[total]`; None where no weight moved.
      problem: the problem that was annealed.
      start_energy: energy of the initial mask.
      best_energy: lowest energy of each chain, float32 `[chains]`.
      num_accepted: accepted proposals of each chain, int32 `[chains]`.
      num_not_finite: proposals of each chain whose energy was NaN or infinite, int32 `[chains]`.
      max_drift: largest difference found between a chain's energy and its full evaluation; NaN if not measured.
      num_samples: number of samples in the energy.
      num_steps: proposals of each chain.
      planned_steps: proposals that were planned; more than `num_steps` if annealing ended early.
      trace: arrays by name; `step` and `temperature` `[entries]`, `energy`, `best_energy` and `acceptance` (since
        the previous entry) `[chains, entries]`.
      snapshots: masks recorded during the run, by name: `step`, int64 `[snapshots]`, and `masks`, uint8
        `[snapshots, chains, total / 8]`, eight branches to a byte.
      memory_bytes: memory that the programs need, over all devices of a CPU or on one of an accelerator; 0 if
        unknown.
      chain_batch: number of chains vmapped together.
      compile_seconds: wall time of compiling.
      anneal_seconds: wall time of annealing.
      cpu_seconds: CPU time of compiling and annealing, and of finding the initial mask, all threads.
      work_seconds: the same without compiling, where score search found the initial mask.
      searched: the score search that found the initial mask, or None.
    """

    masks: np.ndarray  # bool [chains, total]
    weights: np.ndarray | None  # float32 [total]
    problem: Problem
    start_energy: float
    best_energy: np.ndarray  # float32 [chains]
    num_accepted: np.ndarray  # int32 [chains]
    num_not_finite: np.ndarray  # int32 [chains]
    max_drift: float
    num_samples: int
    num_steps: int
    planned_steps: int
    trace: dict[str, np.ndarray]
    snapshots: dict[str, np.ndarray]
    memory_bytes: int
    chain_batch: int
    compile_seconds: float
    anneal_seconds: float
    cpu_seconds: float
    work_seconds: float
    searched: Searched | None = None

    @property
    def mask(self) -> np.ndarray:
        """The best mask of all chains, bool `[total]`."""
        return self.masks[int(self.best_energy.argmin())]

    @property
    def search_seconds(self) -> float:
        """Wall time of the score search; 0 if there was none."""
        return 0.0 if self.searched is None else self.searched.seconds


class Saving(NamedTuple):
    """Where and when a run is saved.

    Attributes:
      folder: folder of the checkpoints.
      every: seconds between two checkpoints; 0 for none.
      stop: returns whether the run shall be saved and end.
      probes: whether these chains are one probe of a search; each probe is saved after its last step too.
    """

    folder: Path
    every: float
    stop: Callable[[], bool]
    probes: bool = False


class Stopped(Exception):
    """A run was saved and ended early, on request; `annealed` is None if it ended during its score search."""

    def __init__(self, step: int, num_steps: int, annealed: Annealed | None):
        stage = "the score search was " if annealed is None else ""
        super().__init__(f"{stage}stopped after {step:,} of {num_steps:,} steps")
        self.annealed = annealed


class Progress(NamedTuple):
    """Progress of a run: after an epoch of training, a part of score search, or a chunk of annealing.

    Attributes:
      stage: 'training', 'score search' or 'annealing'.
      step: epochs or steps that are done.
      num_steps: epochs or steps of this stage.
      steps_per_second: since the stage began or was resumed.
      energy: of annealing, that of the chain with the lowest energy so far; of score search, the mean over
        minibatches; None in training.
      best_energy: lowest energy of annealing so far, of that chain; None in the other stages.
      temperature: of annealing; None in the other stages.
      acceptance: share of the proposals of that chain that were accepted since the last call; None likewise.
      accuracy: of training, that on the validation split; None in the other stages and where it was not measured.
      probe: in a search for the density, number of this annealing run, from 1; otherwise 0.
      density: in such a search, the density of this run; otherwise None.
    """

    stage: str
    step: int
    num_steps: int
    steps_per_second: float
    energy: float | None = None
    best_energy: float | None = None
    temperature: float | None = None
    acceptance: float | None = None
    accuracy: float | None = None
    probe: int = 0
    density: float | None = None

    @property
    def searching(self) -> bool:
        """Whether this is score search."""
        return self.stage == "score search"
