"""Several host devices, as chains are spread over them; set before JAX is first used."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)


@pytest.fixture
def rng_key():
    return jax.random.key(0)
