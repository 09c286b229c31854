"""Settings of a comparison, validated on construction, and the cells that they make."""

import difflib
import hashlib
import importlib.metadata
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from sa_jax import baselines, checks
from sa_jax.baselines import Budget
from sa_jax.commands.run.settings import MAX_SEED, RunConfig
from sa_jax.files import datasets
from sa_jax.files.array_files import SUFFIXES
from sa_jax.types import InputError

DENSE = "dense"
# Baselines that evaluate masks, as many as annealing does.
SEARCHES = ("random_search", "greedy_swaps", "genetic_algorithm")
# Version of a cell's files and figures; when it changes, all cells are measured again. It changes also when code
# finds other masks.
FORMAT = 2
# Settings of a run that a comparison sets itself, by the list of `compare` that sets each.
_OF_CELL = {
    "dataset": "datasets",
    "input_mean": "datasets",
    "input_std": "datasets",
    "weights": "weights",
    "hidden": "hidden",
    "density": "densities",
    "seed": "seeds",
}
# Settings of a run on which its mask does not depend.
_NOT_OF_MASKS = ("tolerance", "checkpoint_seconds", "rival")
# Settings of a run that are the same for all methods.
_OF_NETWORK = (*_OF_CELL, "activation", "use_bias", "initializer", "pretrain_epochs", "pretrain_learning_rate")


@dataclass(frozen=True)
class CompareConfig:
    """All settings of a comparison.

    Attributes:
      methods: names of `baselines.METHODS` and of `annealers`; the dense network is always measured too.
      densities: densities (kept / total), each in (0, 1].
      seeds: seeds of everything random, including the weights where they are random or trained.
      datasets: `[input_mean, input_std]` by name of the data set, see `files.load_dataset`.
      hidden: widths of the hidden layers, one sequence per network; unused with a weights file.
      weights: 'random', 'pretrain' or a file; each gets tables of its own.
      annealers: settings of `run` that differ for this way to anneal, by its name.
      run: all other settings of annealing, of the dense networks and their training.
      num_samples: training samples from which one-shot scores and the Fisher are computed.
      num_evaluations: masks that random search, greedy swaps and the genetic algorithm evaluate; None for the
        number of proposals of the reference, the first of `annealers` that is compared.
      search_samples: training samples on which random search and the genetic algorithm evaluate masks.
      epochs: passes over the training split, of methods that train by back-propagation.
      learning_rate: learning rate of Adam for trained scores, see `baselines.Budget`.
      score_steps: steps of score search, where it is a method of its own; None to choose them as a run does.
      tolerance: loss of accuracy against the dense network, as a share of all samples, that still counts as none.
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
    score_steps: int | None = None
    tolerance: float = 0.005

    def __post_init__(self):
        for name in ("methods", "densities", "seeds", "hidden", "weights"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or not value:
                raise InputError(f"compare.{name} must be a non-empty list, not {value!r}")
            if any(item in value[:place] for place, item in enumerate(value)):
                raise InputError(f"compare.{name} contains duplicates: {value!r}")
        for name in ("datasets", "annealers"):
            value = getattr(self, name)
            if not isinstance(value, dict) or not value:
                raise InputError(f"compare.{name} must be a non-empty dictionary, not {value!r}")
        for name, values in (("weights", self.weights), ("datasets", self.datasets)):
            for value in values:
                if not isinstance(value, str) or not value:
                    raise InputError(f"each name in compare.{name} must be text in quotes, not {value!r}")
        for name, moments in self.datasets.items():
            if not isinstance(moments, list | tuple) or len(moments) != 2:
                raise InputError(f"compare.datasets[{name!r}] must be [mean, std], not {moments!r}")
            mean = checks.number(f"the mean in compare.datasets[{name!r}]", moments[0])
            std = checks.number(f"the std in compare.datasets[{name!r}]", moments[1], above=0)
            self._store("datasets", {**self.datasets, name: [mean, std]})
        for widths in self.hidden:
            if not isinstance(widths, list | tuple):
                raise InputError(
                    f"compare.hidden must be a list of lists such as [[300, 100]], not {self.hidden!r}"
                )
        of_hidden = "each width in compare.hidden"
        self._store("hidden", [[checks.whole(of_hidden, width, 1) for width in one] for one in self.hidden])
        of_densities, of_seeds = "each density in compare.densities", "each seed in compare.seeds"
        self._store("densities", [checks.number(of_densities, one, above=0, most=1) for one in self.densities])
        self._store("seeds", [checks.whole(of_seeds, seed, 0, MAX_SEED) for seed in self.seeds])
        if not isinstance(self.run, RunConfig) or not isinstance(self.run.schedule, str):
            raise InputError("compare.run must be @run(), with a schedule given by name")
        for name, setting in _OF_CELL.items():
            value = getattr(self.run, name)
            if (tuple(value) if isinstance(value, list) else value) != getattr(RunConfig, name):
                raise InputError(f"run.{name} has no effect in a comparison: set compare.{setting} instead")
        self._check_annealers()
        known = [DENSE, *self.annealers, *baselines.METHODS]
        for method in self.methods:
            close = difflib.get_close_matches(str(method), known, 1)
            if method not in known and close:
                raise InputError(f"compare.methods: {method!r} is not known; did you mean {close[0]!r}?")
            checks.choice("each method in compare.methods", method, known)
        plain = baselines.check_budget(self.budget, "compare")._asdict()
        for name in ("num_samples", "search_samples", "epochs", "learning_rate", "score_steps"):
            self._store(name, plain[name])
        if self.num_evaluations is not None:
            self._store("num_evaluations", plain["num_evaluations"])
        self._store("tolerance", checks.number("compare.tolerance", self.tolerance, least=0, below=1))
        for cell in self.cells():
            cell_run(self, cell)  # checks the settings

    def _store(self, name: str, value: Any) -> None:
        """Stores plain Python numbers that a check returned, which JSON can hold."""
        object.__setattr__(self, name, value)

    def _check_annealers(self) -> None:
        known = {setting.name for setting in fields(RunConfig)}
        for name, settings in self.annealers.items():
            if not isinstance(name, str) or not re.fullmatch("[a-z][a-z0-9_]*", name):
                raise InputError(
                    f"names in compare.annealers must be in snake case, such as 'anneal_long', not {name!r}"
                )
            if name == DENSE or name in baselines.METHODS:
                raise InputError(f"compare.annealers: {name!r} is the name of another method")
            if not isinstance(settings, dict):
                raise InputError(f"compare.annealers[{name!r}] must be a dictionary of settings, not {settings!r}")
            for setting in settings:
                where = f"compare.annealers[{name!r}]: {setting!r}"
                if setting in _OF_NETWORK:
                    raise InputError(f"{where} must be the same for all methods")
                if setting not in known:
                    raise InputError(f"{where} is not a setting of run")

    @property
    def budget(self) -> Budget:
        """The budget of the baselines, with one evaluation where `num_evaluations` is None and not known yet."""
        evaluations = 1 if self.num_evaluations is None else self.num_evaluations
        training = self.epochs, self.learning_rate
        return Budget(self.num_samples, evaluations, self.search_samples, *training, self.score_steps)

    @property
    def searched_like(self) -> str:
        """The way to anneal whose energy and number of evaluations the other searches use."""
        return self.reference or next(iter(self.annealers))

    @property
    def reference(self) -> str | None:
        """The way to anneal that others are compared with: the first of `annealers` that is measured, or None."""
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
    """One measurement: a network, a method, a density and a seed."""

    dataset: str
    weights: str
    hidden: tuple[int, ...]
    method: str
    density: float
    seed: int

    @property
    def network_name(self) -> str:
        """The name of the dense network's file, without its suffix."""
        return _file_name([self.dataset, self.weights, *self.hidden, self.seed])

    @property
    def name(self) -> str:
        """The name of the cell's files, without their suffix."""
        return _file_name([self.dataset, self.weights, *self.hidden, self.seed, self.method, self.density])


def _file_name(parts: Sequence[Any]) -> str:
    """Returns a readable name that differs for different parts; of a path it shows the last part alone."""
    readable = "-".join(Path(str(part)).name for part in parts)
    return f"{readable}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]}"


def cell_run(config: CompareConfig, cell: Cell) -> RunConfig:
    """Returns the settings of a cell's run: those of `config.run`, of the cell, and of its way to anneal.

    Raises:
      InputError: a bad setting; the message names the cell.
    """
    mean, std = config.datasets[cell.dataset]
    own = {"dataset": cell.dataset, "input_mean": float(mean), "input_std": float(std), "weights": cell.weights}
    own |= {"hidden": list(cell.hidden), "density": cell.density, "seed": cell.seed}
    try:
        return replace(config.run, **own | dict(config.annealers.get(cell.method, {})))
    except InputError as error:
        raise InputError(f"method {cell.method} at density {cell.density}: {error}") from None


def digest(config: CompareConfig, cell: Cell) -> str:
    """Returns the hash of all that a cell's figures depend on; a cell whose hash has changed is measured again."""
    run = _annealing(cell_run(config, cell))
    depends: dict[str, Any] = {"format": FORMAT, "network": {name: run[name] for name in _OF_NETWORK}}
    depends["versions"] = [importlib.metadata.version(name) for name in ("sa_jax", "jax")]
    depends["files"] = [_content(source) for source in (cell.dataset, cell.weights)]
    if cell.method in config.annealers:
        depends["run"] = run
        if cell_run(config, cell).start_method is not None:
            depends["budget"] = config.budget._asdict()
    elif cell.method != DENSE:
        depends["budget"] = config.budget._asdict() | {"num_evaluations": config.num_evaluations}
        if baselines.METHODS[cell.method].minimises_energy:  # annealing's
            depends["run"] = _annealing(cell_run(config, cell._replace(method=config.searched_like)))
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def _annealing(run: RunConfig) -> dict[str, Any]:
    """Returns the settings of a run that its mask depends on."""
    return {name: value for name, value in asdict(run).items() if name not in _NOT_OF_MASKS}


def _content(source: str) -> str | None:
    """Returns the hash of a user's file; None for a name that the package knows."""
    try:
        path = datasets.data_file(source) if source.endswith(SUFFIXES) else None
        return path and hashlib.sha256(path.read_bytes()).hexdigest()
    except (InputError, OSError):  # reported when the file is read
        return None
