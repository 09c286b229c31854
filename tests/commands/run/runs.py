"""A small run."""

from sa_jax.commands.run import chains, runner
from sa_jax.commands.run.settings import RunConfig
from sa_jax.files import datasets

SMALL = RunConfig(
    weights="random", hidden=(12, 8), density=0.2, num_steps=2_000, num_chains=2, num_samples=300, use_bias=True
)


def annealed(config, dataset=None, on_progress=lambda progress: None):
    """Anneals as `run` does, without writing anything."""
    dataset = dataset or datasets.load_dataset(config.dataset)
    _, network = runner.load_network(config, dataset)
    x, y = dataset.train.inputs[: config.num_samples], dataset.train.labels[: config.num_samples]
    return chains.anneal_chains(config, network, x, y, num_kept=100, on_progress=on_progress)
