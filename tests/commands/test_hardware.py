"""The machine that a command runs on."""

import json

import jax
import jax.numpy as jnp

from sa_jax.commands import hardware
from tests.conftest import refusal


def test_free_memory_is_a_number_of_bytes():
    assert 0 < hardware.free_memory(jax.local_devices()[0]) < 2**50


def test_the_machine_and_its_versions_are_stated():
    found = hardware.machine()
    assert found["processor"] == hardware.processor() and found["processor"]
    assert 1 <= hardware.available_cores() <= found["cores"]
    assert len(found["devices"]) == jax.local_device_count()
    assert found["versions"] == hardware.versions() and json.loads(json.dumps(found)) == found
    assert found["versions"]["jax"] == jax.__version__ and set(hardware.PACKAGES) < set(found["versions"])


def test_the_memory_of_a_program_is_that_of_its_arrays():
    program = jax.jit(lambda x: x + 1).lower(jnp.ones(1_000)).compile()
    assert 8_000 <= hardware.program_bytes(program) < 9_000


def test_what_does_not_fit_is_refused():
    hardware.check_memory("the run", 2_000_000, 2_000_000, "HIDDEN")
    hardware.check_memory("the run", 2_000_000, None, "HIDDEN")  # unknown
    message = "the run needs 2.5 MB of memory, but only 2.0 MB are free: lower NUM_SAMPLES or HIDDEN"
    with refusal(message):
        hardware.check_memory("the run", 2_500_000, 2_000_000, "NUM_SAMPLES or HIDDEN")
