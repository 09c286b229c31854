"""Several host devices, as chains are spread over them; set before JAX is first used."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)


@pytest.fixture(autouse=True, scope="session")
def compile_each_program_once(tmp_path_factory):
    """Most of the tests' time is compiling, often the same again."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture
def rng_key():
    return jax.random.key(0)
