"""`sa-jax prune` on a terminal: progress and a summary."""

import argparse
import shlex
import time

from sa_jax.commands import interrupts
from sa_jax.commands.hardware import use_all_cores
from sa_jax.commands.messages import RESUMABLE, tell
from sa_jax.commands.prune import host
from sa_jax.commands.prune.inputs import Inputs, dense_accuracy, open_inputs
from sa_jax.commands.prune.settings import PruneConfig
from sa_jax.commands.run import records
from sa_jax.commands.run.console import sweep_summary
from sa_jax.commands.run.progress import shown_progress
from sa_jax.commands.run.sweep import densities_of


def command(arguments: argparse.Namespace) -> int:
    """Runs `sa-jax prune` and returns its exit code.

    Args:
      arguments: arguments of the command line, those of `add_arguments`.
    """
    begun = time.monotonic()
    given = {name: value for name, value in vars(arguments).items() if name not in ("command", "dry_run")}
    if arguments.densities is not None:
        given["densities"] = densities_of(arguments.densities)
    config = PruneConfig(**given)
    use_all_cores(host.MOST_CHAINS)
    inputs = open_inputs(config)
    for note in inputs.notes:
        tell(note)
    print(f"model: {config.model}, {_network(inputs)}")
    print(f"data: {_data(config, inputs)}")
    if arguments.dry_run:
        print(_plan(config, inputs))
        return 0
    try:
        with shown_progress() as (show, say):
            how = show, say, interrupts.requested, begun
            if config.densities is not None and config.workdir is not None:
                said = sweep_summary(host.prune_all(config, inputs, *how), config.workdir)
                written = ", ".join(str(out) for out in config.outs)
                print(f"{said}\npruned models: {written}")
                return 0
            pruned = host.prune(config, inputs, *how)
    except records.Stopped as stopped:
        tell(f"{stopped}; repeat the command to resume")
        return RESUMABLE
    for note in pruned.notes[len(inputs.notes) :]:
        tell(note)
    print(summary(config, pruned))
    return 0


def summary(config: PruneConfig, pruned: host.Pruned) -> str:
    """Returns the few lines that a finished command prints."""
    what = "test accuracy" if pruned.labelled else "agreement with the model on test samples"
    lines = [
        f"{pruned.kept:,} of {pruned.total:,} branches kept ({pruned.kept / pruned.total:.1%}), "
        f"in {pruned.seconds:.0f} s",
        f"  before {100 * pruned.dense_accuracy:6.2f} % {what}, {pruned.bytes_before:,} bytes",
        f"  after  {100 * pruned.accuracy:6.2f} % {what}, {pruned.bytes_after:,} bytes; "
        f"{pruned.packed_bytes:,} bytes as a packed export",
        f"  pruned model: {pruned.out}" + (f"; masks: {config.masks}" if config.masks is not None else ""),
    ]
    if config.workdir is None:
        return "\n".join([*lines, "  for a report, and an export to C, name a folder: --workdir=DIR"])
    to_c = (
        f"sa-jax export {shlex.quote(str(config.workdir))} --format=c --out={shlex.quote(config.out.stem + '_c')}"
    )
    return "\n".join([*lines, f"  report: {config.workdir / 'report.html'}", f"  to C: {to_c}"])


def _network(inputs: Inputs) -> str:
    sizes, network = "-".join(map(str, inputs.network.sizes)), inputs.network
    layers = f"layers {', '.join(inputs.names)}"
    return f"{sizes}, {inputs.activation}, {network.total:,} weights to prune; {layers}"


def _data(config: PruneConfig, inputs: Inputs) -> str:
    dataset = inputs.dataset
    splits = zip(
        ("training", "validation", "test"), (dataset.train, dataset.validation, dataset.test), strict=True
    )
    counts = ", ".join(f"{len(split.labels):,} {name}" for name, split in splits)
    labels = f"{dataset.num_classes} classes" if inputs.labelled else "no labels"
    return f"{config.data}, {labels}; {counts} samples ({inputs.cut})"


def _plan(config: PruneConfig, inputs: Inputs) -> str:
    """What a command would do, after all files were opened and checked."""
    if config.pattern is not None:
        kept = f"keep the pattern {config.pattern}"
    elif config.densities is not None:
        kept = f"keep {', '.join(f'{100 * density:g} %' for density in config.densities)} of the branches, in turn"
    elif config.density is not None:
        kept = f"keep {round(config.density * inputs.network.total):,} branches ({config.density:.3g} of all)"
    else:
        kept = f"search the lowest density with validation accuracy {config.target_accuracy}"
    time_ = "as many steps as its size needs" if config.minutes is None else f"about {config.minutes:g} minutes"
    dense = dense_accuracy(inputs.network, inputs.dataset.test, inputs.activation)
    before = f"dense model: {100 * dense:.2f} % test accuracy\n" if inputs.labelled else ""
    written = ", ".join(str(path) for path in (*config.outs, config.masks, config.workdir) if path is not None)
    return f"{before}would {kept}, with {time_}\nwould write {written}; nothing was written"
