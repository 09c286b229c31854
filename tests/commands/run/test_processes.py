"""What processes tell each other."""

import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from sa_jax.commands.run.processes import agreed, of_first, on_host


def test_a_single_process_exchanges_nothing():
    assert agreed(True, False) == (True, False) and agreed(False, True) == (False, True)
    given = np.arange(3)
    assert of_first(given) is given
    np.testing.assert_array_equal(on_host(jnp.arange(3)), given)


PROGRAM = """
import sys
import jax, numpy as np
from sa_jax.commands.run.processes import agreed, of_first
number = int(sys.argv[2])
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, number)
votes = agreed(number == 1, number == 0), agreed(False, number == 1)
print(votes, of_first(np.arange(3) + 10 * number).tolist(), of_first(np.array([number == 0] * 2)).tolist())
"""


@pytest.mark.slow
def test_one_may_stop_all_and_the_first_decides_the_rest():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [sys.executable, "-c", PROGRAM, port]
    started = [subprocess.Popen([*words, str(i)], stdout=subprocess.PIPE, text=True) for i in range(2)]
    said = [process.communicate(timeout=120)[0].splitlines()[-1] for process in started]
    assert said == ["((True, True), (False, False)) [0, 1, 2] [True, True]"] * 2
