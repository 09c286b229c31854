"""Baselines to compare annealing with: pruning methods from the literature, on plain parameters and masks.

`prune(rng_key, "wanda_global", ...)` runs any of the `METHODS` by its name. Their functions are in `scores`,
`search`, `second_order` and `trained`, and can be called alone. The functions in `linear`, `swaps` and `relaxed`
prune one linear layer.
"""

from sa_jax.baselines.methods import (
    DEFAULT_BUDGET,
    METHODS,
    Budget,
    Found,
    Method,
    Task,
    check_budget,
    prune,
)

__all__ = ["DEFAULT_BUDGET", "METHODS", "Budget", "Found", "Method", "Task", "check_budget", "prune"]
