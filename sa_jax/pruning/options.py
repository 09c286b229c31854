"""How to anneal a network: the options of `prune` and of a run."""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from sa_jax import checks
from sa_jax.landscapes.mlp import BACKENDS
from sa_jax.networks import mlp
from sa_jax.networks.patterns import Pattern, rule_of
from sa_jax.networks.slopes import ESTIMATES
from sa_jax.types import InputError, Schedule

ENERGIES = ("cross_entropy", "kl_to_teacher", "error_rate")
MOVES = ("saliency", "informed", "uniform")
STARTS = ("score_search", "magnitude", "saliency", "random")
SCHEDULES = ("geometric", "linear", "cosine", "logarithmic", "constant")
# Samples in the energy per square root of the number of kept branches: fewer branches overfit less, and moves that
# need many proposals leave less time for each. Chosen on validation images of MNIST.
SAMPLES_PER_ROOT = {"informed": 800, "saliency": 200, "uniform": 200}
# Steps of score search for each sample per branch, within bounds: with few branches a step is cheap, and with many
# samples a longer search gains more. And the most steps for each proposal that follows, so that a short call stays
# short. Chosen on validation samples of MNIST and Fashion-MNIST, on 784-40-20-10, 784-300-100-10 and
# 784-1000-1000-10.
STEPS_PER_SAMPLE, FEWEST_STEPS, MOST_STEPS, STEPS_PER_PROPOSAL = 10_000, 4_000, 16_000, 4
# Samples for each step above the fewest: with fewer, the same samples come again and again.
SAMPLES_PER_STEP = 3


class Options(NamedTuple):
    """How to anneal; hashable, hence static under `jit`.

    Attributes:
      activation: 'relu', 'tanh' or 'gelu', between layers.
      energy: 'cross_entropy', 'kl_to_teacher' (the dense network's predictions in place of the labels) or
        'error_rate'.
      move: 'informed', a swap whose two branches are drawn by their estimated effects on the energy; 'saliency', a
        swap whose new branch is drawn by `|w| * norm(input)`; or 'uniform'.
      start: initial mask: 'score_search', found by `score_search`; or, for annealing alone, 'magnitude',
        'saliency' or 'random'.
      schedule: 'geometric', 'linear', 'cosine', 'logarithmic', 'constant', or `step -> temperature`.
      logit_scale: factor on the logits in all energies but the error rate; None calibrates it.
      temperature_start: in units of the energy; None calibrates it.
      temperature_end: in units of the energy; None takes a hundredth of `temperature_start`, or calibrates it if
        that is None too. Unused by 'logarithmic' and 'constant'.
      nudge_share: share of the proposals that change a kept branch's weight instead of the mask, below 1. Above 0
        weights move and positions are `Weighted`; such results must not be compared with those of fixed weights.
      estimates: how score search, informed swaps and nudges estimate effects on the energy: 'forward', from
        forward passes with perturbed units, or 'gradient', from the derivative of the energy. With the energy
        'error_rate' they estimate effects on the cross-entropy.
      score_steps: steps of score search; None to choose them by the numbers of branches, samples and proposals.
      backend: what evaluates the proposals: 'xla'; 'native', C code for CPUs, compiled at its first use; or
        'auto', which takes 'native' where that is possible. The results are the same up to float rounding.
      pattern: which weights of each layer may be kept: `Unit`, `Layer` or `NM` of `sa_jax.patterns`, in place of
        the density. It needs the move 'uniform', which then swaps within the sets of the pattern, and a start
        other than 'score_search'. None for the density alone.
    """

    activation: str = "relu"
    energy: str = "cross_entropy"
    move: str = "informed"
    start: str = "score_search"
    schedule: str | Schedule = "geometric"
    logit_scale: float | None = None
    temperature_start: float | None = None
    temperature_end: float | None = None
    nudge_share: float = 0.0
    estimates: str = "forward"
    score_steps: int | None = None
    backend: str = "auto"
    pattern: Pattern | None = None


def uses_gradients(options: Options) -> bool:
    """Returns whether score search or annealing with these options takes a derivative of the energy."""
    uses_estimates = options.move == "informed" or options.nudge_share > 0 or options.start == "score_search"
    return uses_estimates and options.estimates == "gradient"


def score_steps(options: Options, total: int, samples: int, num_steps: int | None = None) -> int:
    """Returns the number of steps of score search.

    Args:
      options: how to anneal; the options may give the number.
      total: number of branches of the network.
      samples: number of samples from which minibatches are drawn.
      num_steps: number of proposals that follow; None where none follow.

    >>> score_steps(Options(), 266_200, 50_000), score_steps(Options(), 32_360, 50_000)
    (4000, 15451)
    >>> score_steps(Options(), 2_720, 1_079), score_steps(Options(), 2_720, 1_079, 500)
    (4000, 2000)
    """
    if options.score_steps is not None:
        return options.score_steps
    most = min(STEPS_PER_SAMPLE * samples // total, samples // SAMPLES_PER_STEP, MOST_STEPS)
    steps = max(most, FEWEST_STEPS)
    return steps if num_steps is None else min(steps, STEPS_PER_PROPOSAL * num_steps)


def samples_for(num_kept: int, move: str) -> int:
    """Returns the number of training samples to anneal `num_kept` branches on with one of `MOVES`.

    >>> samples_for(647, "informed"), samples_for(647, "saliency")
    (20349, 5087)
    """
    return round(SAMPLES_PER_ROOT[move] * math.sqrt(num_kept))


def refuse_unknown(options: Iterable[str], known: Sequence[str], function: Callable) -> None:
    """Refuses options that a function does not know, and names the option or argument that may be meant.

    Args:
      options: names of the options that were given.
      known: names of the options that the function knows.
      function: the function.

    Raises:
      InputError: an option is unknown.
    """
    for option in sorted(set(options) - set(known)):
        arguments = [name for name in inspect.signature(function).parameters if name != "options"]
        close = difflib.get_close_matches(option, [*known, *arguments], 1)
        hint = f"did you mean {close[0]}?" if close else f"options: {', '.join(known)}"
        raise InputError(f"unknown option {option!r}; {hint}")


def check_options(options: Options, named: Callable[[str], str] = str) -> Options:
    """Returns the options, their numbers as plain Python numbers.

    Args:
      options: the options to check.
      named: maps the name of a field to the name by which the user knows it.

    Raises:
      InputError: an option that is wrong, or options that exclude each other.
    """
    choices = {"activation": mlp.ACTIVATIONS, "energy": ENERGIES, "move": MOVES, "start": STARTS}
    choices["estimates"], choices["backend"] = ESTIMATES, BACKENDS
    if not callable(options.schedule):
        choices["schedule"] = SCHEDULES
    for name, allowed in choices.items():
        checks.choice(named(name), getattr(options, name), allowed)
    if options.pattern is not None:
        if rule_of(options.pattern).block != (1, 1):
            raise InputError(
                f"{named('pattern')} = {str(options.pattern)!r}: only patterns of single weights are possible, as "
                "'2:4', 'unit:0.1' or 'layer:0.1'; in Python, sa_jax.prune takes blocks and columns"
            )
        check_pattern(options.pattern, options, named)
    numbers = {"nudge_share": checks.number(named("nudge_share"), options.nudge_share, least=0, below=1)}
    if options.score_steps is not None:
        otherwise = ", or None to choose it; for annealing alone choose another start, such as 'magnitude'"
        numbers["score_steps"] = checks.whole(named("score_steps"), options.score_steps, 1, otherwise=otherwise)
    for name in ("logit_scale", "temperature_start", "temperature_end"):
        value = getattr(options, name)
        if value is None:
            continue
        # Every schedule but the geometric one can start or end at temperature 0.
        bound = {"least": 0} if name != "logit_scale" and options.schedule != "geometric" else {"above": 0}
        numbers[name] = checks.number(named(name), value, **bound, otherwise=", or None to calibrate it")
    return options._replace(**numbers)


def check_pattern(pattern: Pattern, options: Options, named: Callable[[str], str] = str) -> None:
    """Refuses options that exclude a pattern.

    Args:
      pattern: the pattern.
      options: how to anneal with it.
      named: as for `check_options`.

    Raises:
      InputError: the move or the start cannot hold to a pattern.
    """
    if options.move != "uniform":
        raise InputError(f"{pattern!r} needs {named('move')} 'uniform', not {options.move!r}")
    if options.start == "score_search":
        raise InputError(f"{pattern!r} needs another {named('start')} than 'score_search', such as 'magnitude'")
