"""What is recorded of a run's chains between their chunks, and when they gain nothing more."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# How often annealing from the mask of score search is validated, and the share by which the energy on the
# validation split must fall to count as a gain.
VALIDATIONS, LEAST_GAIN = 40, 1e-3
# Fewer validations without a gain may be chance.
LEAST_WITHOUT_GAIN = 3
# How many masks of each chain are recorded for the pictures of a run, besides the initial one; one bit per branch.
SNAPSHOTS = 8
TRACED: tuple[str, ...] = ("step", "temperature", "energy", "best_energy", "acceptance")


class History(NamedTuple):
    """Everything recorded up to a step.

    Attributes:
      entries: for each chunk its last step, temperature, and `[chains]` energies, lowest energies, acceptances.
      noted: for each snapshot, its step and the masks of all chains, bits `[chains, total / 8]`.
      drifts: differences found between energies and their full evaluations.
      validated: energies of the best mask on the validation split, with their steps; empty without validation.
      seconds: 'anneal', 'cpu' and 'work' seconds that the run took before it was stopped: wall time of annealing,
        CPU time with compiling, and CPU time of annealing alone.
    """

    entries: list[tuple[Any, ...]]
    noted: list[tuple[int, np.ndarray]]  # each uint8 [chains, total / 8]
    drifts: list[float]
    validated: list[tuple[int, float]]
    seconds: Mapping[str, float]

    @property
    def trace(self) -> dict[str, np.ndarray]:
        """The entries as arrays, `[entries]` or `[entries, chains]`."""
        columns = (np.array(column) for column in zip(*self.entries, strict=True))
        return dict(zip(TRACED, columns, strict=True))

    @property
    def snapshots(self) -> dict[str, np.ndarray]:
        """The snapshots as arrays, `step` `[snapshots]` and `masks` `[snapshots, chains, total / 8]`."""
        steps, bits = zip(*self.noted, strict=True)
        return {"step": np.array(steps), "masks": np.array(bits)}

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns all that was recorded but seconds and drifts, as arrays of any shape, by name; none is empty."""
        arrays = self.trace | {f"snapshots.{name}": values for name, values in self.snapshots.items()}
        return arrays | ({"validated": np.array(self.validated, np.float64)} if self.validated else {})


def begun() -> History:
    """Returns the history of a run before its first step."""
    return History([], [], [], [], {"anneal": 0.0, "cpu": 0.0, "work": 0.0})


def restored(arrays: Mapping[str, np.ndarray], figures: Mapping[str, float]) -> History:
    """Returns the history of a run that was stopped.

    Args:
      arrays: what `History.arrays` gave, arrays of any shape.
      figures: 'anneal', 'cpu' and 'work' seconds, and 'drift', the largest one, if there was one.
    """
    entries = list(zip(*(arrays[name] for name in TRACED), strict=True))
    noted = list(zip(*(arrays[f"snapshots.{name}"] for name in ("step", "masks")), strict=True))
    drifts = [figures[name] for name in ("drift",) if name in figures]
    validated = [(int(step), float(energy)) for step, energy in arrays.get("validated", ())]
    return History(entries, noted, drifts, validated, figures)


def gains_nothing(validated: Sequence[tuple[int, float]], patience: float, num_steps: int) -> bool:
    """Returns whether the energy on the validation split has not fallen for a share of the proposals.

    Args:
      validated: energies on the validation split, with their steps.
      patience: the share, above 0.
      num_steps: number of all proposals.

    >>> validated = [(0, 1.0), (25, 0.9), (35, 0.8999), (45, 0.8999), (55, 0.8999)]
    >>> gains_nothing(validated, 0.2, 100), gains_nothing(validated, 0.4, 100)
    (True, False)
    >>> gains_nothing(validated[:-1], 0.2, 100)
    False
    """
    last, gained, without_gain, lowest = 0, 0, 0, math.inf
    for last, energy in validated:
        without_gain += 1
        if energy < lowest * (1 - LEAST_GAIN):
            gained, without_gain, lowest = last, 0, energy
    return without_gain >= LEAST_WITHOUT_GAIN and last - gained >= patience * num_steps


def ends_part(before: int, done: int, num_steps: int, parts: int) -> bool:
    """Returns whether one of so many equal parts of a run ends after the step `before` and by the step `done`.

    >>> ends_part(40, 50, 100, 2), ends_part(50, 60, 100, 2)
    (True, False)
    """
    return done * parts // num_steps > before * parts // num_steps
