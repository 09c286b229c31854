"""Several host devices, as chains are spread over them, and quick compiling; set before JAX is first used."""

import os
import subprocess
import sys
from contextlib import contextmanager

import jax
import pytest

from sa_jax import InputError
from sa_jax.commands.run import runner
from sa_jax.commands.run.settings import RunConfig

jax.config.update("jax_num_cpu_devices", 2)
# Most of the tests' time is compiling: five times as quick so. See `optimized`.
quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{quick} {os.environ.get('XLA_FLAGS', '')}"
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for processes that a test starts
# The same for a single program.
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


def pytest_configure(config):
    """The native code is compiled before any test: the command that compiles it says so, in a line of its own."""
    if not hasattr(config, "workerinput"):
        subprocess.run([sys.executable, "-c", "from sa_jax.landscapes import native; native.ready()"], check=False)


@pytest.fixture(autouse=True, scope="session")
def compile_each_program_once(tmp_path_factory):
    """The same is compiled again and again, in whichever of several processes."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    for name, value in (
        ("jax_compilation_cache_dir", str(shared / "compiled")),
        ("jax_persistent_cache_min_compile_time_secs", 0.0),
    ):
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for processes that a test starts


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Each compiled program takes a few memory maps, of which a process may have 65,530 on Linux."""
    yield
    jax.clear_caches()


@pytest.fixture
def optimized():
    """Compiles with LLVM's optimizations: for what must hold to the last bit, or runs for long."""
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


@pytest.fixture
def rng_key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a finished run on the digits, which no test changes."""
    workdir = tmp_path_factory.mktemp("run")
    small = {"weights": "random", "hidden": (12, 8), "density": 0.1, "rival": None}
    config = RunConfig(**small, num_steps=1_000, num_samples=100, num_chains=1)
    runner.run(config, workdir)
    return workdir


@contextmanager
def refusal(*parts):
    """Expects one line that holds all the parts."""
    with pytest.raises(InputError) as refused:
        yield
    message = str(refused.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
