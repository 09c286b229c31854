"""Settings of a run, validated on construction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sa_jax import baselines, checks, pruning
from sa_jax.annealing.chain import BLOCK_STEPS
from sa_jax.commands.layers.settings import parse
from sa_jax.commands.run.macros import MACROS
from sa_jax.networks import mlp
from sa_jax.networks.patterns import NM, Pattern
from sa_jax.pruning.options import SCHEDULES as SCHEDULES  # for messages of the command line
from sa_jax.pruning.options import STARTS, Options
from sa_jax.types import InputError

# Steps are counted in int32.
MAX_STEPS = 2**31 - 1
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run. The first twelve are the macros that open every config.

    Attributes:
      dataset: 'digits', 'mnist', 'fashion_mnist' or the path of an .npz or .csv.
      input_mean: number subtracted from the inputs, after pixels are scaled to 0..1.
      input_std: number that then divides the inputs.
      weights: 'random', 'pretrain', or a file, one of `array_files.SUFFIXES`, whose shapes then fix the layers.
      hidden: widths of the hidden layers; unused with a weights file.
      activation: 'relu', 'tanh' or 'gelu'.
      density: kept / total, in (0, 1]; None searches the lowest density that reaches the target accuracy.
      seed: seed of everything random.
      num_steps: proposals per chain; None for as many as the budget allows.
      num_chains: independent chains; the result is the mask of the chain with the lowest energy.
      num_samples: training samples in the energy; all of them, if there are fewer. None chooses the number by the
        number of kept branches, see `pruning.samples_for`.
      checkpoint_seconds: seconds between two checkpoints, from which a stopped run resumes; 0 makes none.
      chain_batch: chains of a device that are vmapped together; 1 runs one chain after the other. None chooses: 1
        on a CPU, all chains elsewhere.
      budget: proposals times samples of each chain, used where `num_steps` is None.
      use_bias: whether random and pretrained networks have biases.
      initializer: initializer of random and pretrained weights, one of `mlp.INITIALIZERS`.
      pretrain_epochs: passes over the training split.
      pretrain_learning_rate: learning rate of Adam at the start.
      energy: see `pruning.Options`, as for the following.
      move: 'informed', 'saliency' or 'uniform'.
      start: 'score_search'; for annealing alone 'magnitude', 'saliency' or 'random'; or a method of
        `baselines.METHODS` that moves no weight, other than score search, such as 'edge_popup', which finds the
        initial mask first, on the training split, with its default budget. For score search with the derivative
        see `estimates`.
      schedule: 'geometric', 'linear', 'cosine', 'logarithmic', 'constant' or a callable.
      logit_scale: None calibrates it.
      temperature_start: None calibrates it.
      temperature_end: None calibrates it.
      nudge_share: share of the proposals that change a weight; 0 changes no weight.
      estimates: 'forward', which takes no derivative, or 'gradient'.
      score_steps: steps of score search; None chooses.
      scores_from: folder of a finished run of the same network, from whose scores score search starts; None to
        start from the largest weights.
      backend: 'auto', 'native' or 'xla'.
      pattern: which weights of each layer may be kept, such as '2:4', 'unit:0.1' or 'layer:0.1', in place of the
        density; None for the density alone. With a pattern, moves are uniform within its sets, and the largest
        weights that it allows are the start in place of score search.
      patience: share of the proposals without gain on the validation split after which annealing from the mask of
        score search ends, above 0, but not before three validations without gain; 1 never ends it early. A gain
        is a fall of the energy (of the cross-entropy, for 'error_rate').
      target_accuracy: wanted accuracy on the validation split, in (0, 1], where density is None; None for the
        accuracy of the dense network less the tolerance.
      tolerance: loss of accuracy that still counts as none, against the dense network; 0.005 is half a point.
      rival: the method of `baselines.METHODS` with which the result is compared, in as much time as score search
        and annealing took: one that moves no weight, other than score search. None for none.
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
    move: str = "informed"
    start: str = "score_search"
    schedule: str | Callable = "geometric"
    logit_scale: float | None = None
    temperature_start: float | None = None
    temperature_end: float | None = None
    nudge_share: float = 0.0
    estimates: str = "forward"
    score_steps: int | None = None
    scores_from: str | None = None
    backend: str = "auto"
    pattern: str | Pattern | None = None
    # On validation samples of digits as good as making all proposals.
    patience: float = 0.2
    target_accuracy: float | None = None
    tolerance: float = 0.005
    rival: str | None = "edge_popup_momentum"

    def __post_init__(self):
        for name in ("dataset", "weights"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise InputError(f"{setting_name(name)} must be text in quotes, not {value!r}")
        self._check_whole("seed", 0, MAX_SEED)
        for name in ("num_chains", "budget", "pretrain_epochs"):
            self._check_whole(name, 1)
        self._check_whole("num_steps", 1, MAX_STEPS, "None to choose it by run.budget")
        for name in ("num_samples", "chain_batch"):
            self._check_whole(name, 1, None, "None to choose it")
        if not isinstance(self.hidden, list | tuple):
            raise InputError(f"HIDDEN must be a list of whole numbers such as [300, 100], not {self.hidden!r}")
        self._store("hidden", type(self.hidden)(checks.whole("each width in HIDDEN", w, 1) for w in self.hidden))
        self._check_number("input_mean")
        self._check_number("checkpoint_seconds", least=0)
        self._check_number("tolerance", least=0, below=1)
        self._check_number("patience", above=0, most=1)
        for name in ("input_std", "pretrain_learning_rate"):
            self._check_number(name, above=0)
        for name, alternative in (("density", "None to search for it"), ("target_accuracy", "None")):
            self._check_number(name, above=0, most=1, alternative=alternative)
        if not isinstance(self.use_bias, bool):
            raise InputError(f"{setting_name('use_bias')} must be True or False, not {self.use_bias!r}")
        checks.choice(setting_name("initializer"), self.initializer, mlp.INITIALIZERS)
        if self.target_accuracy is not None and self.density is not None:
            raise InputError(
                f"run.target_accuracy = {self.target_accuracy} and DENSITY = {self.density} exclude each other: "
                "set DENSITY = None to search for the density, or remove run.target_accuracy"
            )
        if self.scores_from is not None and (not isinstance(self.scores_from, str) or not self.scores_from):
            raise InputError(f"{setting_name('scores_from')} must be text in quotes, not {self.scores_from!r}")
        checks.choice(setting_name("start"), self.start, [*STARTS, *self._start_methods()])
        if self.rival is not None:
            checks.choice(setting_name("rival"), self.rival, self._other_methods())
        if self.pattern is not None:
            self._apply_pattern()
        pruning.check_options(self.options, setting_name)

    def _apply_pattern(self) -> None:
        """Checks the pattern, and stores its text and the density, the move and the start that go with it."""
        pattern = pattern_of(self.pattern)
        if self.density is None:
            raise InputError(
                f"run.pattern = {str(pattern)!r} and DENSITY = None exclude each other: a pattern has its density"
            )
        self._store("pattern", str(pattern))
        self._store("density", pattern.kept / pattern.group if isinstance(pattern, NM) else pattern.density)
        for name, default, other in (("move", "informed", "uniform"), ("start", "score_search", "magnitude")):
            if getattr(self, name) == default:
                self._store(name, other)
        checks.choice(f"with run.pattern, {setting_name('start')}", self.start, STARTS[1:])

    def _check_whole(self, name: str, least: int, most: int | None = None, alternative: str = "") -> None:
        """Checks a setting that is a whole number, or None where a message names that alternative."""
        value, otherwise = getattr(self, name), alternative and f", or {alternative}"
        if value is not None or not alternative:
            self._store(name, checks.whole(setting_name(name), value, least, most, otherwise))

    def _check_number(self, name: str, alternative: str = "", **bounds: float) -> None:
        """Checks a setting that is a finite number, or None where a message names that alternative."""
        value, otherwise = getattr(self, name), alternative and f", or {alternative}"
        if value is not None or not alternative:
            self._store(name, checks.number(setting_name(name), value, otherwise=otherwise, **bounds))

    def _store(self, name: str, value: Any) -> None:
        """Stores the plain Python number that a check returned, which JSON can hold."""
        object.__setattr__(self, name, value)

    def sizes(self, num_kept: int, available: int) -> tuple[int, int]:
        """Returns the number of samples in the energy and of proposals per chain, chosen where they are None.

        Args:
          num_kept: number of branches that stay.
          available: number of training samples.
        """
        samples, steps = self.num_samples, self.num_steps
        samples = min(pruning.samples_for(num_kept, self.move) if samples is None else samples, available)
        if steps is None:
            blocks = min(max(self.budget // samples // BLOCK_STEPS, 1), MAX_STEPS // BLOCK_STEPS)
            steps = blocks * BLOCK_STEPS
        return samples, steps

    @property
    def options(self) -> Options:
        """The part of the settings that the pure functions take."""
        options = Options(*(getattr(self, name) for name in Options._fields))
        if self.pattern is not None:
            options = options._replace(pattern=pattern_of(self.pattern))
        return options if self.start_method is None else options._replace(start="magnitude")

    @property
    def start_method(self) -> baselines.Method | None:
        """The baseline that finds the initial mask; None where one of `STARTS` gives it."""
        return self._start_methods().get(self.start)

    @property
    def uses_labels(self) -> bool:
        """Whether annealing, its initial mask included, uses labels."""
        first = self.start_method
        return self.energy != "kl_to_teacher" or (first is not None and first.uses_labels)

    @property
    def uses_gradients(self) -> bool:
        """Whether annealing, its initial mask included, takes a derivative of the energy."""
        first = self.start_method
        return pruning.uses_gradients(self.options) or (first is not None and first.uses_gradients)

    @classmethod
    def _start_methods(cls) -> dict[str, baselines.Method]:
        return {name: method for name, method in cls._other_methods().items() if name not in STARTS}

    @staticmethod
    def _other_methods() -> dict[str, baselines.Method]:
        # The start 'score_search' has all that this package's own methods have.
        methods = baselines.METHODS.items()
        return {name: method for name, method in methods if not (method.own or method.moves_weights)}


def pattern_of(given: Any, name: str = "run.pattern") -> Pattern:
    """Returns a pattern, given as a value or as text.

    Args:
      given: a pattern, or a text such as '2:4'.
      name: what users call the setting.

    Raises:
      InputError: not a pattern.

    >>> pattern_of("unit:0.1")
    Unit(density=0.1)
    """
    return given if isinstance(given, Pattern) else parse(given, name)


def setting_name(field: str) -> str:
    """Returns what users call a setting of a run: its macro, or else `run.NAME`.

    >>> setting_name("num_steps"), setting_name("budget")
    ('NUM_STEPS', 'run.budget')
    """
    return field.upper() if field.upper() in MACROS else f"run.{field}"
