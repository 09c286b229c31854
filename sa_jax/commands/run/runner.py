"""Runs `sa-jax run`: loads data and weights, anneals at one density or at several, writes the results."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax import files, pruning
from sa_jax.baselines import DEFAULT_BUDGET, METHODS, Budget, Task
from sa_jax.commands import interrupts
from sa_jax.commands.run import checkpoint, metrics, score_stage
from sa_jax.commands.run.chains import anneal_chains
from sa_jax.commands.run.evaluation import SECONDS, Probe, Search, accuracy, evaluate, network_with
from sa_jax.commands.run.history import ends_part
from sa_jax.commands.run.records import Annealed, Progress, Saving, Stopped
from sa_jax.commands.run.settings import RunConfig
from sa_jax.files import datasets, workdirs
from sa_jax.files.npz import npz_bytes
from sa_jax.landscapes import native
from sa_jax.networks import masks, mlp
from sa_jax.networks.energies import Energy, cross_entropy
from sa_jax.networks.mlp import Network
from sa_jax.networks.samples import check_samples
from sa_jax.reports.run import render_report, trace_csv
from sa_jax.types import InputError, PyTree

# Version of the content of a checkpoint; raise it whenever that changes.
CHECKPOINT_FORMAT = 5
# Folder of the checkpoints in a run's folder, until the run is done.
CHECKPOINTS = "checkpoints"
# A search for the density stops when its answer has at most this many times the branches of a density that fails.
SEARCH_RATIO = 1.1
# Fewest branches that such a search tries.
MIN_BRANCHES = 8
# How often the accuracy is measured while the dense network is trained.
ACCURACIES = 10
# Flat indices are int32, and the integer weights of a saliency swap must leave room for each branch.
MAX_BRANCHES = 2**27


def run(
    config: RunConfig,
    workdir: Path,
    operative_config: str = "",
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_message: Callable[[str], None] = lambda message: None,
    stop: Callable[[], bool] = lambda: False,
    dense: tuple[list[str], Network] | None = None,
) -> dict[str, Any]:
    """Anneals as configured and writes the results to `workdir`.

    Args:
      config: the settings.
      workdir: output directory, made if missing. Gets masks.npz, weights.npz, survival.npz if there are several
        chains, operative.gin, trace.csv, report.html and result.json. Files are written under temporary names and
        then renamed, result.json last. While it runs, each progress is added to metrics.jsonl.
      operative_config: text of `operative.gin`.
      overwrite: whether to replace an earlier run's results.
      on_progress: called after each epoch of training, part of score search and chunk of annealing.
      on_message: called with messages for the user: what is being done now, and such as the memory that it needs.
      stop: called after each part of score search and each chunk; if it returns True, the run is saved and ends. A
        run is also saved every `config.checkpoint_seconds`. A call with the same settings and workdir resumes from
        the latest valid checkpoint; on the same platform the result is bit for bit that of an uninterrupted run.
      dense: the result of `load_network` with these settings, if it is known already.

    Returns:
      The content of `result.json`. With several processes, all but the first return an empty dictionary.

    Raises:
      InputError: bad data, weights or settings, or a workdir that cannot be used, or to which another command
        writes; nothing is written.
      Stopped: `stop` asked for it; the run is saved, and once it anneals also partial_report.html and
        partial_masks.npz.
    """
    interrupts.defer(None)
    first = jax.process_index() == 0
    # A run is not made for stricter settings of the caller.
    lenient = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with lenient[0], lenient[1], _writing(workdir, on_message) as at_end:
        workdirs.check(workdir, overwrite)
        config = _with_backend(config, on_message)
        if first:
            on_progress = _also(on_progress, _metrics(workdir, overwrite, at_end))
        dataset = datasets.load_dataset(config.dataset, config.input_mean, config.input_std)
        names, network = dense or load_network(config, dataset, on_message, on_progress)
        for split in (dataset.train, dataset.validation, dataset.test):
            check_samples(network, split.inputs, split.labels)
        folder = workdir / CHECKPOINTS
        earlier = folder.is_dir() and not overwrite and first
        if earlier and not checkpoint.any_in(folder):
            on_message("this run was ended before its first checkpoint: it starts again")
        if first:
            at_end.callback(checkpoint.remove_unused, folder)
        settings = _settings(config, dataset, network)
        if config.checkpoint_seconds or folder.is_dir():
            checkpoint.check_settings(folder, settings, overwrite)
        anneal = anneal_to_target if config.density is None else anneal_density
        saving = Saving(folder, config.checkpoint_seconds, stop)
        try:
            annealed, search = anneal(config, dataset, network, on_progress, on_message, saving=saving)
        except Stopped as stopped:
            if first and stopped.annealed is not None:
                _write_partial(config, dataset, network, names, stopped.annealed, workdir)
            raise
        if not first:
            return {}
        interrupts.defer("annealing has ended and the results are being written")
        on_message("measuring accuracies, and those of other masks")
        found = network_with(network, annealed.weights)
        if config.rival is not None:
            on_message(f"comparing with {METHODS[config.rival].label}, in as much time")
        result = evaluate(config, dataset, network, found, annealed, search, stop)

        by_kernel = partial(_by_kernel, names, network)
        arrays = {
            "masks.npz": by_kernel(annealed.mask),
            "weights.npz": mlp.weight_arrays(names, found),
        }
        if annealed.searched is not None:
            arrays[score_stage.SCORES] = by_kernel(annealed.searched.scores)
        if config.num_chains > 1:
            arrays["survival.npz"] = by_kernel(annealed.masks.mean(0, dtype=np.float32))
        for name, values in {**arrays, "trace.csv": annealed.trace, "result.json": result}.items():
            workdirs.check_finite(name, values)
        page = _report(result, annealed, arrays["masks.npz"], found, dataset, arrays.get("survival.npz"))
        files = {name: npz_bytes(by_name) for name, by_name in arrays.items()} | {
            "operative.gin": operative_config.encode(),
            "trace.csv": trace_csv(annealed.trace).encode(),
            "report.html": page.encode(),
            "result.json": (json.dumps(result, indent=2, allow_nan=False) + "\n").encode(),
        }
        workdirs.write(workdir, files)
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _metrics(workdir: Path, overwrite: bool, at_end: contextlib.ExitStack) -> Callable[[Progress], None]:
    """A function that writes each progress of a run to its folder."""
    at_end.callback(metrics.remove_unused, workdir)
    return metrics.writing_to(workdir, resumes=not overwrite and (workdir / CHECKPOINTS).is_dir())


def _also(first: Callable[[Progress], None], second: Callable[[Progress], None]) -> Callable[[Progress], None]:
    def both(progress: Progress) -> None:
        first(progress)
        second(progress)

    return both


@contextlib.contextmanager
def _writing(workdir: Path, on_message: Callable[[str], None]) -> Iterator[contextlib.ExitStack]:
    """As `workdirs.writing`. Of several processes the first locks the folder, and all end if one cannot write."""
    with contextlib.ExitStack() as stack:
        at_end, refusal = stack, None
        try:
            at_end = stack.enter_context(workdirs.writing(workdir, on_message, alone=jax.process_index() == 0))
        except InputError as error:
            refusal = error
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            refused = multihost_utils.process_allgather(np.array(refusal is not None))
            if refusal is None and refused.any():
                refusal = InputError(f"another process of this run cannot write to {workdir}")
        if refusal is not None:
            raise refusal
        yield at_end


def _with_backend(config: RunConfig, on_message: Callable[[str], None]) -> RunConfig:
    """The settings with the backend that 'auto' means here. Native code is compiled if it is not in the cache."""
    if config.backend == "native" and (platform := jax.default_backend()) != "cpu":
        raise InputError(
            f"run.backend = 'native' needs a CPU, but this run would use {platform}: set JAX_PLATFORMS=cpu, or "
            "run.backend = 'auto'"
        )
    with warnings.catch_warnings(record=True) as reasons:
        warnings.simplefilter("always")
        config = dataclasses.replace(config, backend=pruning.backend_of(config.options))
    for reason in reasons:
        on_message(str(reason.message))
    if config.backend == "native" and native.ready().compile_seconds:
        library = native.ready()
        on_message(f"compiled native code in {library.compile_seconds:.1f} s, for {library.description}")
    return config


def _by_kernel(names: Sequence[str], network: Network, flat: Any) -> dict[str, np.ndarray]:
    parts = masks.unflatten(flat, network.shapes)
    return {f"{name}/kernel": np.asarray(part) for name, part in zip(names, parts, strict=True)}


def _report(result, annealed: Annealed, kernels, found: Network, dataset: datasets.Dataset, survival=None) -> str:
    bits = annealed.snapshots["masks"][:, int(annealed.best_energy.argmin())]
    evolution = {"step": annealed.snapshots["step"]}
    evolution["masks"] = np.unpackbits(bits, axis=-1, count=annealed.mask.size).astype(bool)
    weights = [np.asarray(kernel) for kernel in found.kernels]
    return render_report(result, annealed.trace, kernels, dataset.image_shape, survival, weights, evolution)


def _write_partial(config, dataset, network, names, annealed: Annealed, workdir: Path) -> None:
    """Writes the best masks that a stopped run has found so far, and their report."""
    found = network_with(network, annealed.weights)
    density = int(annealed.mask.sum()) / network.total
    config = dataclasses.replace(config, density=density, target_accuracy=None, rival=None)
    kernels = _by_kernel(names, network, annealed.mask)
    result = evaluate(config, dataset, network, found, annealed, None) | {"stopped": True}
    page = _report(result, annealed, kernels, found, dataset)
    workdirs.write_file(workdir / "partial_masks.npz", npz_bytes(kernels))
    workdirs.write_file(workdir / "partial_report.html", page)


def _settings(config: RunConfig, dataset: datasets.Dataset, network: Network) -> dict[str, Any]:
    """Returns all that a run's result depends on, to compare with that of its checkpoints."""
    settings = dataclasses.asdict(config)
    del settings["checkpoint_seconds"], settings["rival"]
    if callable(config.schedule):
        settings["schedule"] = getattr(config.schedule, "__qualname__", type(config.schedule).__qualname__)
    digest = hashlib.sha256()
    for array in (*dataset.train, *jax.tree.leaves(network)):
        digest.update(np.ascontiguousarray(array).tobytes())
    settings["backend"] = pruning.described_backend(config.options)
    settings |= {"data and weights": digest.hexdigest()[:16], "platform": jax.local_devices()[0].platform}
    settings["checkpoint format"] = CHECKPOINT_FORMAT
    return settings | {"jax": jax.__version__, "key implementation": str(jax.random.key_impl(jax.random.key(0)))}


def anneal_density(
    config: RunConfig,
    dataset: datasets.Dataset,
    network: Network,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_message: Callable[[str], None] = lambda message: None,
    budget: Budget = DEFAULT_BUDGET,
    saving: Saving | None = None,
) -> tuple[Annealed, None]:
    """Anneals at the density of the settings, on the number of training samples chosen for it.

    Args:
      config: the settings, with a density.
      dataset: the data.
      network: the fixed weights.
      on_progress: called after each part of score search and each chunk of annealing.
      on_message: called with messages for the user.
      budget: budget of the method of `baselines.METHODS` that finds the initial mask, if there is one.
      saving: where and when score search and the chains are saved, from where they resume; None for nowhere.

    Returns:
      The result of annealing; and None, as there was no search for the density.
    """
    num_kept = masks.num_kept(config.density, network.total)
    num_samples, _ = config.sizes(num_kept, len(dataset.train.labels))
    samples = dataset.train.inputs[:num_samples], dataset.train.labels[:num_samples]
    mask, searched, validation = None, None, None
    cpu_start = time.process_time()
    if config.start == "score_search":
        x, y = dataset.train
        searched = score_stage.search(config, network, x, y, num_kept, on_progress, on_message, saving)
        mask, validation = jnp.asarray(searched.mask), dataset.validation
    elif config.start_method is not None:
        mask = _mask_of_method(config, dataset, network, num_kept, budget, on_message)
    before_chains = time.process_time() - cpu_start if searched is None else searched.cpu_seconds

    def with_start(annealed: Annealed) -> Annealed:
        work = before_chains if searched is None else searched.work_seconds
        seconds = {
            "cpu_seconds": annealed.cpu_seconds + before_chains,
            "work_seconds": annealed.work_seconds + work,
        }
        return annealed._replace(**seconds, searched=searched)

    notes = on_progress, on_message
    try:
        annealed = anneal_chains(config, network, *samples, num_kept, *notes, mask, saving, validation)
    except Stopped as stopped:
        assert stopped.annealed is not None
        stopped.annealed = with_start(stopped.annealed)
        raise
    return with_start(annealed), None


def _mask_of_method(config, dataset, network: Network, num_kept: int, budget: Budget, on_message) -> jax.Array:
    """The initial mask by the baseline `config.start`, flat, bool `[total]`."""
    on_message(f"finding the initial mask with {config.start}")
    key = jax.random.fold_in(jax.random.key(config.seed), 3)
    x, y = map(jnp.asarray, dataset.train)
    minimises = config.start_method.minimises_energy
    energy = scaled_cross_entropy(config, network, x, y, num_kept) if minimises else None
    return config.start_method.find(Task(key, network, x, y, num_kept, config.activation, energy, budget)).mask


def scaled_cross_entropy(config: RunConfig, network: Network, x: jax.Array, y: jax.Array, num_kept: int) -> Energy:
    """Returns the cross-entropy of the labels, with the scale of the logits that annealing uses.

    Args:
      config: the settings.
      network: the fixed weights.
      x: inputs, float `[samples, features]`.
      y: labels, int `[samples]`.
      num_kept: number of branches that stay.
    """
    num_samples, _ = config.sizes(num_kept, len(y))
    arguments = jax.random.key(config.seed), network, x[:num_samples], y[:num_samples], num_kept, config.options
    problem = jax.jit(pruning.prepare, static_argnums=(4, 5))(*arguments)
    return cross_entropy(float(problem.logit_scale))


def anneal_to_target(
    config: RunConfig,
    dataset: datasets.Dataset,
    network: Network,
    on_progress: Callable[[Progress], None],
    on_message: Callable[[str], None],
    saving: Saving | None = None,
) -> tuple[Annealed, Search]:
    """Searches the lowest density at which annealing reaches the target accuracy on the validation split.

    Each probe is one call of `anneal_density`. If none reaches the target, the probe with the highest validation
    accuracy is returned.

    Args:
      config: the settings, without a density.
      dataset: the data.
      network: the fixed weights.
      on_progress: called after each part of score search and each chunk of annealing.
      on_message: called with messages for the user.
      saving: where and when checkpoints are made, from which the search resumes; None for none.

    Returns:
      The result of annealing at the density found; and the search.
    """

    def on_validation(network: Network, mask: np.ndarray) -> float:
        return accuracy(network, jnp.asarray(mask), dataset.validation, config.activation)

    dense = on_validation(network, np.ones(network.total, bool))
    search = Search(dense - config.tolerance if config.target_accuracy is None else config.target_accuracy)
    tried: list[tuple[Probe, Annealed]] = []

    def passes(num_kept: int) -> bool:
        number, density = len(tried) + 1, num_kept / network.total
        annealed, _ = anneal_density(
            dataclasses.replace(config, density=density, target_accuracy=None),
            dataset,
            network,
            lambda progress: on_progress(progress._replace(probe=number, density=density)),
            (lambda message: None) if tried else on_message,
            saving=None if saving is None else saving._replace(probes=True),
        )
        reached = on_validation(network_with(network, annealed.weights), annealed.mask)
        probe = Probe(density, num_kept, reached, *(getattr(annealed, name) for name in SECONDS))
        # Without the samples, whose copies would fill the memory.
        tried.append((probe, annealed._replace(problem=annealed.problem._replace(data=()))))
        accuracies = f"validation accuracy {100 * reached:.2f} %, target {100 * search.target_accuracy:.2f} %"
        on_message(f"probe {number}: {100 * density:.3g} % of the branches kept, {accuracies}")
        return search.passes(reached)

    fewest = fewest_branches(passes, network.total, search.passes(dense))
    _, annealed = max(tried, key=lambda one: (one[0].kept == fewest, one[0].validation_accuracy))
    return annealed, search._replace(probes=tuple(probe for probe, _ in tried))


def fewest_branches(passes: Callable[[int], bool], total: int, dense_passes: bool) -> int | None:
    """Searches the fewest branches that pass: halves until some number fails, then bisects in the logarithm.

    Args:
      passes: returns whether a number of branches passes.
      total: number of branches.
      dense_passes: whether all branches pass; if not, fewer may still pass, and are halved until they do.

    Returns:
      The fewest found, at most `SEARCH_RATIO` times a number that fails; None if no number that was tried passes.

    >>> tried = []
    >>> fewest_branches(lambda num_kept: tried.append(num_kept) or num_kept >= 150, 1_000, True), tried
    (162, [500, 250, 125, 177, 149, 162])
    """
    least = max(1, min(MIN_BRANCHES, total // 2))
    passing, failing = (total if dense_passes else None), max(1, total // 2)
    while failing >= least:
        if passes(failing):
            passing = failing
        elif passing is not None:
            break
        failing //= 2
    if passing is None:
        return None
    while passing - failing > 1 and passing / failing > SEARCH_RATIO:
        middle = round(math.sqrt(passing * failing))
        if middle >= least and passes(middle):
            passing = middle
        else:
            failing = middle
    return passing if passing < total else None


def load_network(
    config: RunConfig,
    dataset: datasets.Dataset,
    on_message: Callable[[str], None] = lambda message: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[list[str], Network]:
    """Draws, trains or loads the fixed weights.

    Args:
      config: the settings.
      dataset: the data.
      on_message: called with messages for the user.
      on_progress: called after each epoch of training.

    Returns:
      The names of the layers, and the network.

    Raises:
      InputError: a weights file that is missing, damaged or does not fit the data set.
    """
    features = dataset.train.inputs.shape[1]
    if config.weights in ("random", "pretrain"):
        widths = [*config.hidden, dataset.num_classes]
        sizes = [features, *widths]
        total = sum(inputs * outputs for inputs, outputs in itertools.pairwise(sizes))
        if total > MAX_BRANCHES:
            raise InputError(f"HIDDEN gives {total:,} branches, but at most {MAX_BRANCHES:,} are possible")
        if config.density is not None:
            masks.num_kept(config.density, total)  # refuses a bad density before the training, which may take long
        model = mlp.MLP(widths, config.activation, config.use_bias, config.initializer)
        weights_key = jax.random.fold_in(jax.random.key(config.seed), 0)
        layers, samples = "-".join(map(str, sizes)), f"{len(dataset.train.labels):,} samples of {dataset.name}"
        if config.weights == "random":
            on_message(f"network {layers} with random weights, and {samples}")
            return mlp.network_of(model.init(weights_key, dataset.train.inputs[:1])["params"])
        from sa_jax.networks.pretrain import pretrain

        epochs, begun = config.pretrain_epochs, time.perf_counter()
        on_message(f"training the dense network {layers} for {epochs} epochs on {samples}")

        def tell(epoch: int, params: PyTree) -> None:
            rate, reached = epoch / (time.perf_counter() - begun), None
            if ends_part(epoch - 1, epoch, epochs, ACCURACIES):
                dense = mlp.network_of(params)[1]
                reached = accuracy(dense, jnp.ones(dense.total, bool), dataset.validation, config.activation)
            on_progress(Progress("training", epoch, epochs, rate, accuracy=reached))

        return mlp.network_of(
            pretrain(weights_key, model, *dataset.train, epochs, config.pretrain_learning_rate, tell)
        )
    path = datasets.data_file(config.weights)
    names, network = mlp.network_of(files.load(path, activation=config.activation))
    if network.sizes[0] != features or network.sizes[-1] != dataset.num_classes:
        raise InputError(
            f"{path}: a network {'-'.join(map(str, network.sizes))} does not fit {dataset.name}, "
            f"which has {features} features and {dataset.num_classes} classes"
        )
    layers = "-".join(map(str, network.sizes))
    on_message(f"network {layers} of {path}, and {len(dataset.train.labels):,} samples of {dataset.name}")
    return names, network
