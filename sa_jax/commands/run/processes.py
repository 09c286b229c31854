"""What the processes of one run tell each other. With one process nothing is exchanged."""

import jax
import numpy as np


def on_host(array: jax.Array) -> np.ndarray:
    """Returns, in each process, a whole array, of any shape, spread over the devices of one or more processes."""
    if jax.process_count() > 1 and not array.is_fully_replicated:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def agreed(stopped: bool, due: bool) -> tuple[bool, bool]:
    """Returns what all processes do: stop if any was asked to, save if it is time for the first one."""
    if jax.process_count() == 1:
        return stopped, due
    from jax.experimental import multihost_utils

    votes = multihost_utils.process_allgather(np.array([stopped, due]))
    return bool(votes[:, 0].any()), bool(votes[0, 1])


def of_first(array: np.ndarray) -> np.ndarray:
    """Returns, in each process, the array of the first process, of any shape."""
    if jax.process_count() == 1:
        return array
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(array))
