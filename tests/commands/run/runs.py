"""Small runs."""

import dataclasses

from sa_jax.commands.run import chains, runner
from sa_jax.commands.run.settings import RunConfig
from sa_jax.files import datasets

# Annealing alone.
SMALL = RunConfig(
    weights="random",
    hidden=(12, 8),
    density=0.2,
    num_steps=2_000,
    num_chains=2,
    num_samples=300,
    move="saliency",
    start="magnitude",
    rival=None,
)
# With score search first, in four parts.
SEARCHED = dataclasses.replace(SMALL, start="score_search", score_steps=350, num_steps=1_000, num_samples=60)


def annealed(config, dataset=None, on_progress=lambda progress: None):
    """Anneals as `run` does, without writing anything."""
    dataset = dataset or datasets.load_dataset(config.dataset)
    _, network = runner.load_network(config, dataset)
    x, y = dataset.train.inputs[: config.num_samples], dataset.train.labels[: config.num_samples]
    return chains.anneal_chains(config, network, x, y, num_kept=100, on_progress=on_progress)


def stop_after(times):
    """Asks to stop once it was asked so many times, and again each time after."""
    asked = []
    return lambda: asked.append(1) or len(asked) >= times
