"""What a comparison consists of: methods by densities, seeds, networks and data sets, checked at the door."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from sa_jax import baselines
from sa_jax.settings import RunConfig
from sa_jax.types import InputError

DENSE = "dense"
# Baselines that evaluate masks, as many as annealing does.
SEARCHES = ("random_search", "greedy_swaps", "genetic_algorithm")


@dataclass(frozen=True)
class CompareConfig:
    """What is compared with what.

    Attributes:
      methods: names of `baselines.METHODS` and of `annealers`; the dense network is always there.
      densities: kept / total, each in (0, 1].
      seeds: of the weights where they are trained or random, and of everything else random.
      datasets: `input_mean` and `input_std` by name, see `data.load`.
      hidden: widths of the hidden layers, one sequence per network; unused with a weights file.
      weights: 'random', 'pretrain' or a file, each compared in tables of its own.
      annealers: by name, settings of `run` that are other for this way to anneal.
      run: all other settings of annealing, of the dense networks and their training.
      num_samples: training samples that one-shot scores and the Fisher are taken from.
      num_evaluations: of random search, greedy swaps and the genetic algorithm; None for as many as the first way
        to anneal makes proposals.
      search_samples: training samples that random search and the genetic algorithm evaluate masks on.
      epochs: passes over the training split of what is trained by back-propagation.
      learning_rate: of Adam for trained scores, see `baselines.Effort`.
      tolerance: loss of accuracy against the dense network, as a share of all samples, up to which it counts as
        kept.
    """

    methods: Sequence[str]
    densities: Sequence[float]
    seeds: Sequence[int]
    datasets: Mapping[str, Sequence[float]]
    hidden: Sequence[Sequence[int]] = ((32, 16),)
    weights: Sequence[str] = ("pretrain",)
    annealers: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"anneal": {}})
    run: RunConfig = field(default_factory=RunConfig)
    num_samples: int = 1_000
    num_evaluations: int | None = None
    search_samples: int = 1_000
    epochs: int = 10
    learning_rate: float = 1e-2
    tolerance: float = 0.005

    def __post_init__(self):
        for name in ("methods", "densities", "seeds", "hidden", "weights"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or not value:
                raise InputError(f"compare.{name} must be a list with something in it, not {value!r}")
            keys = [str(item) for item in value]
            if len(set(keys)) < len(keys):
                raise InputError(f"compare.{name} has an entry twice: {value!r}")
        for name in ("datasets", "annealers"):
            value = getattr(self, name)
            if not isinstance(value, dict) or not value:
                raise InputError(f"compare.{name} must be a dictionary with something in it, not {value!r}")
        for name, moments in self.datasets.items():
            if not isinstance(moments, list | tuple) or len(moments) != 2:
                raise InputError(f"compare.datasets: {name!r} must have [mean, std], not {moments!r}")
        clash = set(self.annealers) & {DENSE, *baselines.METHODS}
        if clash:
            raise InputError(f"compare.annealers: {sorted(clash)[0]!r} is the name of another method")
        known = [DENSE, *self.annealers, *baselines.METHODS]
        for method in self.methods:
            if method not in known:
                raise InputError(f"compare.methods: {method!r} is none of {', '.join(known)}")
        for name, settings in self.annealers.items():
            unknown = set(settings) - {setting.name for setting in fields(RunConfig)}
            if unknown:
                raise InputError(f"compare.annealers: {name!r}: run has no setting {sorted(unknown)[0]!r}")
        for name in ("num_samples", "num_evaluations", "search_samples", "epochs"):
            value = getattr(self, name)
            if value is None and name == "num_evaluations":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"compare.{name} must be a whole number of at least 1, not {value!r}")
        if not isinstance(self.learning_rate, float) or not 0 < self.learning_rate < float("inf"):
            raise InputError(f"compare.learning_rate must be a number above 0, not {self.learning_rate!r}")
        if not isinstance(self.tolerance, float | int) or not 0 <= self.tolerance < 1:
            raise InputError(f"compare.tolerance must be a share in [0, 1), not {self.tolerance!r}")
        for cell in self.cells():
            cell_run(self, cell)  # checks the settings

    def cells(self) -> Iterator["Cell"]:
        """All cells, the dense networks first."""
        networks = [
            group for group in itertools.product(self.datasets, self.weights, map(tuple, self.hidden), self.seeds)
        ]
        for dataset, weights, hidden, seed in networks:
            yield Cell(dataset, weights, hidden, DENSE, 1.0, seed)
        for dataset, weights, hidden, seed in networks:
            for density, method in itertools.product(self.densities, self.methods):
                if method != DENSE:
                    yield Cell(dataset, weights, hidden, method, density, seed)


class Cell(NamedTuple):
    """One measurement: which network, pruned how, how far, with which seed."""

    dataset: str
    weights: str
    hidden: tuple[int, ...]
    method: str
    density: float
    seed: int

    @property
    def network_name(self) -> str:
        """The name of its dense network's file."""
        parts = [self.dataset, self.weights, *self.hidden, self.seed]
        return "-".join(str(Path(str(part)).name) for part in parts)

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.network_name}-{self.method}-{self.density:g}"


def cell_run(config: CompareConfig, cell: Cell) -> RunConfig:
    """The settings of a run for a cell: the base, the cell's own, and those of its way to anneal.

    Raises:
      InputError: a bad setting, named with the cell.
    """
    mean, std = config.datasets[cell.dataset]
    own = {"dataset": cell.dataset, "input_mean": float(mean), "input_std": float(std), "weights": cell.weights}
    own |= {"hidden": list(cell.hidden), "density": cell.density, "seed": cell.seed}
    try:
        return replace(config.run, **own | dict(config.annealers.get(cell.method, {})))
    except InputError as error:
        raise InputError(f"compare, {cell.method} at density {cell.density}: {error}") from None


def digest(config: CompareConfig, cell: Cell) -> str:
    """What a cell's figures depend on, hashed: a cell whose digest has changed is measured anew."""
    effort = [
        config.num_samples,
        config.num_evaluations,
        config.search_samples,
        config.epochs,
        config.learning_rate,
    ]
    of_annealer = cell.method in config.annealers
    run = asdict(cell_run(config, cell))
    if not of_annealer:
        # A baseline depends on the network, and, where it searches, on annealing's energy and budget.
        first = next(iter(config.annealers))
        searches = cell.method in SEARCHES
        names = ("dataset", "input_mean", "input_std", "weights", "hidden", "activation", "density", "seed")
        names += ("use_bias", "initializer", "pretrain_epochs", "pretrain_learning_rate")
        run = asdict(cell_run(config, cell._replace(method=first))) if searches else {n: run[n] for n in names}
        run["effort"] = effort if cell.method != DENSE else None
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
