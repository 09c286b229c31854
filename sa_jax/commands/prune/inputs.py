"""Opens the model and the data of `sa-jax prune`, and checks them, and the files that shall be written."""

import contextlib
import math
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sa_jax import files
from sa_jax.commands.prune.settings import PruneConfig
from sa_jax.files import datasets, keras_files, tables, workdirs
from sa_jax.files.array_files import array_bytes
from sa_jax.files.datasets import Dataset, Samples, Split
from sa_jax.networks import masks, mlp, patterns
from sa_jax.networks.mlp import Network
from sa_jax.types import InputError

# Training samples on which the activation and the scaling of the inputs are checked.
CHECKED_SAMPLES = 2_000
# Another activation is named if it gives the dense network an accuracy higher by this much.
MUCH_BETTER = 0.05
# The dense network has learnt less than this share of what the most frequent class alone leaves to learn.
NEAR_CHANCE = 0.1


class Inputs(NamedTuple):
    """What was opened.

    Attributes:
      model: path of the model's file.
      names: names of its layers.
      network: its weights.
      activation: the activation between its layers.
      data: name of the data set, as for `files.load_dataset`.
      samples: its samples, with labels, and with the names of all classes if some do not occur.
      dataset: the same in three splits.
      cut: how they were cut.
      labelled: whether the data set has labels; if not, those of `samples` are the dense network's predictions.
      as_in_file: whether `files.load_dataset(data)` gives `dataset`.
      notes: what the user should know, one line each.
    """

    model: Path
    names: list[str]
    network: Network
    activation: str
    data: str
    samples: Samples
    dataset: Dataset
    cut: str
    labelled: bool
    as_in_file: bool
    notes: tuple[str, ...]


def open_inputs(config: PruneConfig) -> Inputs:
    """Opens all files and checks them; writes nothing.

    Args:
      config: the settings.

    Raises:
      InputError: a file is missing or damaged, the model and the data do not fit each other, or the files to write
        cannot be written.
    """
    check_outputs(config)
    model = datasets.data_file(str(config.model))
    told = _told_activation(model)
    activation = config.activation or told or "relu"
    names, network = mlp.network_of(files.load(model, activation=activation))
    if network.sizes[-1] < 2:
        raise InputError(f"{model} has one output: sa-jax prunes networks with one output for each class")
    _rehearse(config, model, names, network)
    data = _data_name(config, network.sizes[0])
    samples = datasets.read_samples(data)
    labelled = samples.labelled
    named, as_in_file = _completed(config, data, samples, network, activation)
    dataset = datasets.split_samples(data, named, config.input_mean, config.input_std)
    if dataset.num_classes != network.sizes[-1]:
        known = ", ".join(named.classes[:9]) + (", ..." if len(named.classes) > 9 else "")
        raise InputError(
            f"{config.data} has {dataset.num_classes} classes, {known}, but {config.model} has "
            f"{network.sizes[-1]} outputs"
        )
    notes = []
    if samples.classes:
        notes.append("classes: " + ", ".join(f"{number} = {name}" for number, name in enumerate(samples.classes)))
    if labelled:
        notes += _doubts(network, dataset.train, activation, told is not None)
    else:
        notes.append(
            f"{config.data} holds no labels: annealing keeps the outputs near those of the dense network, "
            "and accuracy is agreement with its predictions"
        )
    cut = _cut(samples)
    return Inputs(model, names, network, activation, data, named, dataset, cut, labelled, as_in_file, tuple(notes))


def check_outputs(config: PruneConfig) -> None:
    """Refuses files that cannot be written, or that would replace others.

    Raises:
      InputError: so it is.
    """
    written = [path for path in (*config.outs, config.masks) if path is not None]
    sources = {"model": config.model, "data set": Path(config.data.partition("#")[0])}
    for path in written:
        if path.is_dir():
            raise InputError(f"{path} is a folder: name a file")
        if not path.parent.is_dir():
            raise InputError(f"the folder of {path} does not exist: make it first")
        for what, source in sources.items():
            if path.exists() and source.exists() and os.path.samefile(path, source):
                raise InputError(f"{path} is the {what} itself: name another file")
        if path.exists() and not config.overwrite:
            raise InputError(f"{path} exists; name another, or add --overwrite")
        try:
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            raise InputError(f"folder {path.parent} cannot be written: {error.strerror}") from None
    if config.masks is not None and config.out.absolute() == config.masks.absolute():
        raise InputError(f"{config.out} cannot hold both the pruned weights and the masks")
    if config.workdir is not None:
        workdirs.check(config.workdir, overwrite=True)  # a finished run is refused later, if it is another one
        workdirs.unmake(workdirs.make(config.workdir))  # raises where it cannot be made


def _rehearse(config: PruneConfig, model: Path, names: list[str], network: Network) -> None:
    """Writes what will be written, with the masks of the largest weights, to a folder that is then removed."""
    magnitude = [jnp.abs(kernel) for kernel in network.kernels]
    if config.pattern is None:
        densities = config.densities or [config.density or 0.5]
        kept = [masks.num_kept(density, network.total) for density in densities]  # raises where none is kept
        flat = masks.by_score(masks.flatten(magnitude), kept[0])
    else:
        patterns.network_sets(config.pattern, network.shapes)  # raises where the pattern does not fit a layer
        flat = patterns.network_best(config.pattern, magnitude)
    by_name = {
        f"{name}/kernel": np.asarray(mask)
        for name, mask in zip(names, masks.unflatten(flat, network.shapes), strict=True)
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            files.write_pruned(model, by_name, Path(folder) / config.out.name)
            if config.masks is not None:
                array_bytes(config.masks, files.masks_like(model, by_name))
        except InputError as error:
            raise InputError(str(error).replace(f"{folder}/{config.out.name}", str(config.out))) from None


def _told_activation(model: Path) -> str | None:
    """The activation that a Keras file tells; None where it tells none, or the file is of another format."""
    if model.suffix not in keras_files.SUFFIXES:
        return None
    fitting = []
    for activation in mlp.ACTIVATIONS:
        with contextlib.suppress(InputError):
            files.load(model, activation=activation)
            fitting.append(activation)
    return fitting[0] if len(fitting) == 1 else None


def _data_name(config: PruneConfig, features: int) -> str:
    """The name of the data set with its column of labels; a table of features alone has none."""
    path, label = datasets.table_of(config.data)
    if path is None:
        if config.label is not None:
            raise InputError(f"label names a column of a .csv file, and {config.data} is not one")
        return config.data
    label = config.label or label
    if label is None and tables.count_columns(datasets.data_file(path)) == features:
        label = tables.NO_LABELS
    return path if label is None else f"{path}#{label}"


def _completed(
    config: PruneConfig, data: str, samples: Samples, network: Network, activation: str
) -> tuple[Samples, bool]:
    """The samples with labels and, if some do not occur, with all classes; and whether they were so before."""
    features, classes = network.sizes[0], network.sizes[-1]
    x, y = ({name: array for name, array in samples.arrays.items() if name[0] == kind} for kind in "xy")
    for name, array in x.items():
        if array.ndim > 1 and (width := math.prod(array.shape[1:])) != features:
            where = f" in {name}" if len(x) > 1 else ""
            raise InputError(
                f"{config.data} has {width} feature{'s' * (width > 1)}{where}, but {config.model} takes {features}"
            )
    numbered = tuple(map(str, range(classes)))
    if not samples.labelled:
        predict = jax.jit(lambda x: mlp.forward(network, x, activation).argmax(-1))
        scaled = {
            name: datasets.scaled_inputs(f"{data}: {name}", array, config.input_mean, config.input_std)
            for name, array in x.items()
        }
        predicted = {f"y{name[1:]}": np.asarray(predict(array)) for name, array in scaled.items()}
        return Samples(samples.arrays | predicted, numbered), False
    occurring = np.unique(np.concatenate([array.ravel() for array in y.values()]))
    if samples.classes or np.array_equal(occurring, np.arange(classes)):
        return samples, True
    if len(occurring) and occurring[-1] >= classes:
        raise InputError(
            f"{config.data} has the label {occurring[-1]:g}, but {config.model} has {classes} outputs: labels are "
            f"numbered from 0 to {classes - 1}"
        )
    return samples._replace(classes=numbered), False


def _cut(samples: Samples) -> str:
    if "x" in samples.arrays:
        return "cut 60:20:20"
    if "x_validation" in samples.arrays:
        return "as in the file"
    return "the validation split cut from the training split"


def _doubts(network: Network, train: Split, activation: str, told: bool) -> list[str]:
    """What speaks against the activation and the scaling of the inputs, from the dense network's accuracy."""
    few = Split(*(array[:CHECKED_SAMPLES] for array in train))
    tried = [activation] if told or len(network.kernels) == 1 else list(mlp.ACTIVATIONS)
    accuracy = {one: dense_accuracy(network, few, one) for one in tried}
    best, chosen = max(accuracy, key=accuracy.__getitem__), accuracy[activation]
    if accuracy[best] >= chosen + MUCH_BETTER:
        return [
            f"the dense network is right on {chosen:.1%} of the training samples with activation {activation!r}, "
            f"but on {accuracy[best]:.1%} with {best!r}: add --activation {best} if it was trained with it"
        ]
    most_frequent = float(np.bincount(few.labels).max() / len(few.labels))
    if chosen < most_frequent + NEAR_CHANCE * (1 - most_frequent):
        return [
            f"the dense network is right on only {chosen:.1%} of the training samples (the most frequent class is "
            f"{most_frequent:.1%}): do the inputs need the scaling of its training, --input-mean and --input-std, "
            "or the labels another order?"
        ]
    return []


def dense_accuracy(network: Network, split: Split, activation: str) -> float:
    """Returns the accuracy of a network on a split."""
    logits = mlp.forward(network, jnp.asarray(split.inputs), activation)
    return float(np.mean(np.asarray(logits.argmax(-1)) == split.labels))
