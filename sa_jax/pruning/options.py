"""How to anneal a network: the options of `prune` and of a run."""

import math
from typing import NamedTuple

import jax
import numpy as np

from sa_jax.networks import mlp
from sa_jax.types import InputError, Schedule, is_number

ENERGIES = ("cross_entropy", "kl_to_teacher", "error_rate")
MOVES = ("saliency", "informed", "uniform")
STARTS = ("magnitude", "saliency", "random")
SCHEDULES = ("geometric", "linear", "cosine", "logarithmic", "constant")
# Samples in the energy, for the square root of the branches that stay: few choices overfit less, and moves that
# need many proposals leave less time for each. Chosen on validation images of MNIST.
SAMPLES_PER_ROOT = {"informed": 800, "saliency": 200, "uniform": 200}


class Options(NamedTuple):
    """How to anneal; hashable, hence static under `jit`.

    Attributes:
      activation: 'relu', 'tanh' or 'gelu', between layers.
      energy: 'cross_entropy', 'kl_to_teacher' (the dense network's predictions in place of the labels) or
        'error_rate'.
      move: 'saliency', a swap whose new branch is drawn by `|w| * norm(input)`; 'informed', one whose two branches
        are drawn by their estimated effects, from the derivative of the energy with respect to the mask; or
        'uniform'.
      start: initial mask: 'magnitude', 'saliency' or 'random'.
      schedule: 'geometric', 'linear', 'cosine', 'logarithmic', 'constant', or `step -> temperature`.
      logit_scale: factor on the logits in all energies but the error rate; None calibrates it.
      temperature_start: in units of the energy; None calibrates it.
      temperature_end: likewise, a hundredth of the start if that is given; unused by 'logarithmic' and
        'constant'.
      nudge_share: share of the proposals that change a kept branch's weight instead of the mask, below 1; they are
        aimed by derivatives of the energy. Above 0 weights move, and positions are `Weighted`: a class of its own,
        not to be compared with fixed weights.
    """

    activation: str = "relu"
    energy: str = "cross_entropy"
    move: str = "saliency"
    start: str = "magnitude"
    schedule: str | Schedule = "geometric"
    logit_scale: float | None = None
    temperature_start: float | None = None
    temperature_end: float | None = None
    nudge_share: float = 0.0


def uses_gradients(options: Options) -> bool:
    """Whether annealing with these options takes a derivative of the energy."""
    return options.move == "informed" or options.nudge_share > 0


def samples_for(kept: int, move: str) -> int:
    """How many training samples to anneal `kept` branches on with one of `MOVES`, if that many are there.

    >>> samples_for(647, "informed"), samples_for(647, "saliency")
    (20349, 5087)
    """
    return round(SAMPLES_PER_ROOT[move] * math.sqrt(kept))


def check_options(options: Options) -> Options:
    """Returns the options, or raises `InputError` naming the first bad one."""
    choices = {
        "activation": tuple(mlp.ACTIVATIONS),
        "energy": ENERGIES,
        "move": MOVES,
        "start": STARTS,
        "schedule": SCHEDULES,
    }
    for name, allowed in choices.items():
        value = getattr(options, name)
        if value not in allowed and not (name == "schedule" and callable(value)):
            raise InputError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    if options.move == "informed" and options.energy == "error_rate":
        raise InputError("move 'informed' needs an energy with a derivative: not error_rate")
    share = options.nudge_share
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise InputError(f"nudge_share must be a number from 0 to below 1, not {share!r}")
    if share and options.energy == "error_rate":
        raise InputError("nudge_share needs an energy with a derivative: not error_rate")
    for name in ("logit_scale", "temperature_start", "temperature_end"):
        value = getattr(options, name)
        if isinstance(value, jax.Array | np.ndarray | np.generic) and value.ndim == 0:
            value = value.item()
            options = options._replace(**{name: value})
        zero_fits = name != "logit_scale" and options.schedule != "geometric"
        if value is None:
            continue
        if not is_number(value) or not (value > 0 or (value == 0 and zero_fits)):
            bound = "at least 0" if zero_fits else "above 0"
            raise InputError(f"{name} must be a finite number {bound}, or None to calibrate it, not {value!r}")
    return options
