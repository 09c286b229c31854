"""Simulated annealing of network structure, in JAX.

`import sa_jax` loads nothing else, not even JAX. All names are loaded on first use (PEP 562). So the command line
handles signals before JAX is loaded, which takes a second.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sa_jax import baselines, export, files, testing
    from sa_jax.annealing import chain, tempering
    from sa_jax.annealing.chain import anneal
    from sa_jax.annealing.landscape import from_energy
    from sa_jax.annealing.schedules import (
        calibrate,
        constant_schedule,
        cosine_schedule,
        geometric_schedule,
        linear_schedule,
        logarithmic_schedule,
    )
    from sa_jax.commands.prune.host import prune_file
    from sa_jax.networks import patterns
    from sa_jax.networks.masks import apply_masks
    from sa_jax.pruning import (
        collect_moments,
        prune,
        prune_kernels,
        prune_layers,
        prune_linear,
        refit,
    )
    from sa_jax.types import AnnealResult, InputError, Landscape, Trace

__version__ = importlib.metadata.version("sa_jax")

# What is loaded on first use, and from where.
_LATER = {
    "AnnealResult": "sa_jax.types",
    "InputError": "sa_jax.types",
    "Landscape": "sa_jax.types",
    "Trace": "sa_jax.types",
    "anneal": "sa_jax.annealing.chain",
    "calibrate": "sa_jax.annealing.schedules",
    "constant_schedule": "sa_jax.annealing.schedules",
    "cosine_schedule": "sa_jax.annealing.schedules",
    "from_energy": "sa_jax.annealing.landscape",
    "geometric_schedule": "sa_jax.annealing.schedules",
    "linear_schedule": "sa_jax.annealing.schedules",
    "logarithmic_schedule": "sa_jax.annealing.schedules",
    "apply_masks": "sa_jax.networks.masks",
    "collect_moments": "sa_jax.pruning",
    "prune": "sa_jax.pruning",
    "prune_file": "sa_jax.commands.prune.host",
    "prune_kernels": "sa_jax.pruning",
    "prune_layers": "sa_jax.pruning",
    "prune_linear": "sa_jax.pruning",
    "refit": "sa_jax.pruning",
}
_MODULES = {
    "baselines": "sa_jax.baselines",
    "chain": "sa_jax.annealing.chain",
    "export": "sa_jax.export",
    "files": "sa_jax.files",
    "patterns": "sa_jax.networks.patterns",
    "tempering": "sa_jax.annealing.tempering",
    "testing": "sa_jax.testing",
}

__all__ = [
    "AnnealResult",
    "InputError",
    "Landscape",
    "Trace",
    "__version__",
    "anneal",
    "apply_masks",
    "baselines",
    "calibrate",
    "chain",
    "collect_moments",
    "constant_schedule",
    "cosine_schedule",
    "export",
    "files",
    "from_energy",
    "geometric_schedule",
    "linear_schedule",
    "logarithmic_schedule",
    "patterns",
    "prune",
    "prune_file",
    "prune_kernels",
    "prune_layers",
    "prune_linear",
    "refit",
    "tempering",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = importlib.import_module(_MODULES[name])
    elif name in _LATER:
        value = getattr(importlib.import_module(_LATER[name]), name)
    else:
        raise AttributeError(f"module 'sa_jax' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
