"""A small comparison."""

from sa_jax.commands.compare.settings import CompareConfig
from sa_jax.commands.run.settings import RunConfig

RUN = RunConfig(num_steps=200, num_chains=1, num_samples=100, pretrain_epochs=3)


def config_of(**changes):
    settings = {
        "methods": ["magnitude_global", "anneal", "smaller_dense"],
        "densities": [0.1],
        "seeds": [0, 1],
        "datasets": {"digits": [0.0, 1.0]},
        "hidden": [[8]],
        "annealers": {"anneal": {"move": "informed"}},
        "run": RUN,
        "epochs": 1,
    }
    return CompareConfig(**settings | changes)
