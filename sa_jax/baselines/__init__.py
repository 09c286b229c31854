"""What one would compare annealing with: each method from its source, on plain parameters and masks.

`prune(rng_key, "wanda_global", ...)` takes any of `METHODS` by its name. The functions behind them are in `scores`,
`search`, `second_order` and `trained`, for use alone. Those of `linear` prune one linear layer.
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
