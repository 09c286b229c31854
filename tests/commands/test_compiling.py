"""Quick compiling, and programs that are kept for the next call."""

import os
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import pytest

from sa_jax.commands import compiling

SCRIPT = """
from sa_jax.commands import compiling
compiling.begin(print)
import jax, jax.numpy as jnp
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3))).block_until_ready()
"""


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """An environment without settings of JAX, with a cache of its own."""
    for name in [name for name in os.environ if name.startswith("JAX_") or name == "XLA_FLAGS"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return tmp_path


def run():
    return subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)


def test_programs_are_kept_and_the_flag_is_understood(clean, monkeypatch):
    first = run()
    assert "are kept in" in first.stdout and "JAX_ENABLE_COMPILATION_CACHE=0" in first.stdout
    (folder,) = (clean / "sa_jax" / "programs").iterdir()
    kept = sorted(folder.iterdir())
    assert kept and run().stdout == "" and sorted(folder.iterdir()) == kept
    # A program that was written in part is compiled again, and kept.
    for path in kept:
        path.write_bytes(path.read_bytes()[:10])
    assert run().stderr == ""
    assert all(zlib.decompress(path.read_bytes()) for path in kept if path.name.endswith("-cache"))
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(clean / "other"))
    assert run().stdout == "" and not (clean / "other").exists()


def test_flags_of_the_user_stay(clean, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "0")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=true")
    compiling.begin(print)
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_use_fusion_emitters=true"
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    compiling.begin(print)
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x --xla_cpu_use_fusion_emitters=false"
    monkeypatch.setattr(compiling.importlib.metadata, "version", lambda name: "99.0")
    monkeypatch.setenv("XLA_FLAGS", "")
    compiling.begin(print)
    assert os.environ["XLA_FLAGS"] == ""


def test_no_place_for_programs_is_no_error(clean, monkeypatch):
    (clean / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(clean / "file"))
    assert run().stdout == ""


def test_the_oldest_programs_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "MOST_BYTES", 40)
    folder = tmp_path / "processor"
    folder.mkdir()
    for age, name in enumerate("dcba"):
        (folder / name).write_bytes(bytes(10))
        os.utime(folder / name, (100 - age, 100 - age))
    compiling._remove_oldest(tmp_path)
    assert len(list(folder.iterdir())) == 4
    (folder / "e").write_bytes(bytes(10))
    compiling._remove_oldest(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["d", "e"]


def test_less_optimized_programs_give_the_same(optimized):
    lowered = jax.jit(lambda x: (x * 3 - 1).sum()).lower(jnp.arange(6.0))
    assert float(compiling.compile_once(lowered)(jnp.arange(6.0))) == 39
