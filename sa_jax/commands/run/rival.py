"""Finds the mask of another method in the time that score search and annealing took, to compare the two."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax import baselines, pruning
from sa_jax.baselines import DEFAULT_BUDGET, Task
from sa_jax.baselines.trained import BATCH_SIZE
from sa_jax.commands.run.records import Annealed
from sa_jax.commands.run.settings import MAX_STEPS, RunConfig
from sa_jax.files import datasets
from sa_jax.networks import mlp
from sa_jax.networks.mlp import Network

# What makes a method take longer: the field of its budget. Other methods compute scores once.
EFFORTS = {
    **dict.fromkeys(("random_search", "greedy_swaps", "genetic_algorithm"), "num_evaluations"),
    **dict.fromkeys(("edge_popup", "edge_popup_scaled", "edge_popup_momentum", "movement", "l0_gates"), "epochs"),
}
# A run is this many times as long as the one before. The last one fills the time that is left where this makes it
# at most LAST times as long.
GROWTH, LAST = 4, 20
# Share of the time that is left which the last run is planned to take: its speed is known from shorter ones.
MARGIN = 0.9


class Rival(NamedTuple):
    """The best mask of a method, on validation samples, of runs of growing length.

    Attributes:
      method: name in `baselines.METHODS`.
      mask: flat, bool `[total]`.
      steps: steps, or evaluations, of the run that found it; 0 for a method that computes scores once.
      seconds: time of all runs together.
      allowed_seconds: time that score search and annealing took. The runs together stay below it, but for a first
        run that is longer.
      clock: 'CPU' or, on other devices, 'wall'.
      by_time: whether the number of steps was chosen by time, so that another run may find another mask.
    """

    method: str
    mask: jax.Array  # bool [total]
    steps: int
    seconds: float
    allowed_seconds: float
    clock: str
    by_time: bool


def find(
    config: RunConfig,
    network: Network,
    train: datasets.Split,
    annealed: Annealed,
    on_validation: Callable[[jax.Array], float],
    stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] | None = None,
) -> Rival:
    """Runs the method `config.rival` in as much time as score search and annealing took.

    It minimises what annealing minimises, where it minimises an energy at all: the same loss of the same targets,
    with the same scale of the logits, on the whole training split. Runs become longer until the time is used up,
    because a longer one is not always better on other samples. Compiling is not counted.

    Args:
      config: the settings, with a rival.
      network: the fixed weights.
      train: the training split.
      annealed: the result of annealing.
      on_validation: returns the accuracy of a mask, flat, bool `[total]`, on the validation split.
      stop: called after each run; if it returns True, that was the last one.
      clock: returns seconds; None for the CPU time of this process, or wall time on other devices.
    """
    assert config.rival is not None
    method, effort = baselines.METHODS[config.rival], EFFORTS.get(config.rival)
    on_cpu = jax.default_backend() == "cpu"
    clock = clock or (time.process_time if on_cpu else time.perf_counter)
    allowed = annealed.work_seconds if on_cpu else annealed.search_seconds + annealed.anneal_seconds
    task = _task(config, network, train, annealed)

    def run(amount: int) -> tuple[jax.Array, float]:
        budget = DEFAULT_BUDGET if effort is None else DEFAULT_BUDGET._replace(**{effort: amount})
        begun = clock()
        mask = jax.block_until_ready(method.find(task._replace(budget=budget)).mask)
        return mask, clock() - begun

    samples = len(train.labels)
    steps_of_one = samples // min(BATCH_SIZE, samples) if effort == "epochs" else 1
    amount = BATCH_SIZE if effort == "num_evaluations" else 1
    run(amount)  # compiles
    best, seconds = run(amount)
    best_amount, reached, spent, last = amount, on_validation(best), seconds, effort is None
    while not last and not stop():
        room = int(MARGIN * (allowed - spent) / max(seconds, 1e-9) * amount)
        if room <= amount:
            break
        last = room <= LAST * amount
        amount = min(room if last else GROWTH * amount, MAX_STEPS // steps_of_one)
        mask, seconds = run(amount)
        spent += seconds
        if (accuracy := on_validation(mask)) >= reached:
            best, best_amount, reached = mask, amount, accuracy
    steps = 0 if effort is None else best_amount * steps_of_one
    unit = "CPU" if on_cpu else "wall"
    return Rival(config.rival, best, steps, spent, allowed, unit, effort is not None)


def _task(config: RunConfig, network: Network, train: datasets.Split, annealed: Annealed) -> Task:
    """The task of annealing. Without labels, methods that need some get the dense network's predictions."""
    x, targets = map(jnp.asarray, train)
    energy = None
    if baselines.METHODS[config.rival or ""].minimises_energy:
        energy = pruning.guiding_energy(float(annealed.problem.logit_scale), config.options)
    if config.energy == "kl_to_teacher":
        logits = mlp.forward(network, x, config.activation)
        targets = logits.argmax(-1) if energy is None else pruning.teacher_of(logits)
    rng_key = jax.random.fold_in(jax.random.key(config.seed), 4)
    num_kept = int(np.sum(annealed.mask))
    return Task(rng_key, network, x, targets, num_kept, config.activation, energy)
