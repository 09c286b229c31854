"""What a comparison consists of: methods by densities, seeds, networks and data sets, checked at the door."""

import hashlib
import importlib.metadata
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from sa_jax import baselines
from sa_jax.baselines import Budget
from sa_jax.commands.run.settings import RunConfig
from sa_jax.files import datasets
from sa_jax.networks import masks
from sa_jax.types import InputError, is_number

DENSE = "dense"
# Baselines that evaluate masks, as many as annealing does.
SEARCHES = ("random_search", "greedy_swaps", "genetic_algorithm")
# Of a cell's files and figures; a change of it makes all cells anew.
FORMAT = 1
# Settings of a run that a comparison's lists set, and those that all methods have in common.
_OF_CELL = ("dataset", "input_mean", "input_std", "weights", "hidden", "density", "seed")
_OF_NETWORK = (*_OF_CELL, "activation", "use_bias", "initializer", "pretrain_epochs", "pretrain_learning_rate")


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
      num_evaluations: of random search, greedy swaps and the genetic algorithm; None for as many proposals as
        the reference makes, the first of `annealers` that is compared.
      search_samples: training samples that random search and the genetic algorithm evaluate masks on.
      epochs: passes over the training split of what is trained by back-propagation.
      learning_rate: of Adam for trained scores, see `baselines.Budget`.
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
            if any(item in value[:place] for place, item in enumerate(value)):
                raise InputError(f"compare.{name} has an entry twice: {value!r}")
        for name in ("datasets", "annealers"):
            value = getattr(self, name)
            if not isinstance(value, dict) or not value:
                raise InputError(f"compare.{name} must be a dictionary with something in it, not {value!r}")
        for name, moments in self.datasets.items():
            if not isinstance(moments, list | tuple) or len(moments) != 2 or not all(map(is_number, moments)):
                raise InputError(f"compare.datasets: {name!r} must have [mean, std], not {moments!r}")
        for widths in self.hidden:
            if not isinstance(widths, list | tuple):
                raise InputError(
                    f"compare.hidden must be a list of lists such as [[300, 100]], not {self.hidden!r}"
                )
        if not isinstance(self.run, RunConfig) or not isinstance(self.run.schedule, str):
            raise InputError("compare.run must be @run(), with a schedule that is text")
        for name in _OF_CELL:
            value = getattr(self.run, name)
            if (tuple(value) if isinstance(value, list) else value) != getattr(RunConfig, name):
                raise InputError(f"run.{name} has no effect in a comparison: it is set by the lists of compare")
        self._check_annealers()
        known = [DENSE, *self.annealers, *baselines.METHODS]
        for method in self.methods:
            if method not in known:
                raise InputError(f"compare.methods: {method!r} is none of {', '.join(known)}")
        baselines.check_budget(self.budget, "compare")
        if not is_number(self.tolerance) or not 0 <= self.tolerance < 1:
            raise InputError(f"compare.tolerance must be a share in [0, 1), not {self.tolerance!r}")
        for density in self.densities:
            masks.num_kept(density, 2**62)
        for cell in self.cells():
            cell_run(self, cell)  # checks the settings

    def _check_annealers(self) -> None:
        settable = {setting.name for setting in fields(RunConfig)} - set(_OF_NETWORK)
        for name, settings in self.annealers.items():
            if not isinstance(name, str) or not re.fullmatch("[a-z][a-z0-9_]*", name):
                raise InputError(
                    f"compare.annealers: names are in snake case, such as 'anneal_long', not {name!r}"
                )
            if name == DENSE or name in baselines.METHODS:
                raise InputError(f"compare.annealers: {name!r} is the name of another method")
            if not isinstance(settings, dict):
                raise InputError(
                    f"compare.annealers: {name!r} must have a dictionary of settings, not {settings!r}"
                )
            for setting in settings:
                if setting not in settable:
                    fault = "is set for all methods alike" if setting in _OF_NETWORK else "is no setting of run"
                    raise InputError(f"compare.annealers: {name!r}: {setting!r} {fault}")

    @property
    def budget(self) -> Budget:
        """What the baselines may spend; where the evaluations are those of annealing they are not known yet."""
        evaluations = 1 if self.num_evaluations is None else self.num_evaluations
        return Budget(self.num_samples, evaluations, self.search_samples, self.epochs, self.learning_rate)

    @property
    def searched_like(self) -> str:
        """The way to anneal whose energy and number of evaluations the other searches get."""
        return self.reference or next(iter(self.annealers))

    @property
    def reference(self) -> str | None:
        """The way to anneal that others are held against, the first of `annealers` that is compared; or None."""
        return next((name for name in self.annealers if name in self.methods), None)

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
        return _file_name([self.dataset, self.weights, *self.hidden, self.seed])

    @property
    def name(self) -> str:
        """The name of its files."""
        return _file_name([self.dataset, self.weights, *self.hidden, self.seed, self.method, self.density])


def _file_name(parts: Sequence[Any]) -> str:
    """Readable, and other for other parts, though only the last part of a path can be read."""
    readable = "-".join(Path(str(part)).name for part in parts)
    return f"{readable}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]}"


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
    run = _annealing(cell_run(config, cell))
    depends: dict[str, Any] = {"format": FORMAT, "network": {name: run[name] for name in _OF_NETWORK}}
    depends["versions"] = [importlib.metadata.version(name) for name in ("sa_jax", "jax")]
    depends["files"] = [_content(source) for source in (cell.dataset, cell.weights)]
    if cell.method in config.annealers:
        depends["run"] = run
        if cell_run(config, cell).first_method is not None:
            depends["budget"] = config.budget._asdict()
    elif cell.method != DENSE:
        depends["budget"] = config.budget._asdict() | {"num_evaluations": config.num_evaluations}
        if baselines.METHODS[cell.method].minimises_energy:  # annealing's
            depends["run"] = _annealing(cell_run(config, cell._replace(method=config.searched_like)))
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def _annealing(run: RunConfig) -> dict[str, Any]:
    """The settings of a run that its mask depends on."""
    return {name: value for name, value in asdict(run).items() if name not in ("tolerance", "checkpoint_seconds")}


def _content(source: str) -> str | None:
    """The hash of a file of one's own; None for what the package knows by name."""
    try:
        path = datasets.data_file(source) if source.endswith((".npz", ".safetensors")) else None
        return path and hashlib.sha256(path.read_bytes()).hexdigest()
    except (InputError, OSError):  # said by whoever reads it
        return None
