"""Makes XLA compile quickly for the commands, and keeps the programs for the next call.

Both are also set in the environment, for processes that a command starts. What the user has set stays.
"""

import hashlib
import importlib.metadata
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from sa_jax.landscapes.native import library

# Without fusion emitters, compiling takes two thirds of the time. Score search and annealing by native code are as
# fast; annealing by XLA takes 5 to 13 % longer.
QUICK_FLAG = "xla_cpu_use_fusion_emitters"
# XLA ends a process that gives it a flag which it does not know.
KNOWN_TO = ("0.7.", "0.8.", "0.9.", "0.10.")
# Bytes of kept programs, above which the oldest are removed.
MOST_BYTES = 500_000_000
# How content begins that Zstandard has compressed.
ZSTD = b"\x28\xb5\x2f\xfd"


def begin(on_message: Callable[[str], None]) -> None:
    """Sets XLA's flag and the folder of the kept programs. It must be called before the first use of JAX.

    Args:
      on_message: told where programs are kept, when the folder is made.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if QUICK_FLAG not in flags and importlib.metadata.version("jaxlib").startswith(KNOWN_TO):
        os.environ["XLA_FLAGS"] = f"{flags} --{QUICK_FLAG}=false".strip()
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or "JAX_ENABLE_COMPILATION_CACHE" in os.environ:
        return
    try:
        folder = _folder()
        is_new = not folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        _remove_damaged(folder)
        _remove_oldest(folder.parent)
    except (OSError, RuntimeError):  # no place in the user's cache: all is compiled at each call
        return
    if is_new:
        how = "JAX_ENABLE_COMPILATION_CACHE=0 switches this off"
        on_message(f"compiled programs are kept in {folder}, so that the next call starts sooner; {how}")
    settings = {"jax_compilation_cache_dir": str(folder), "jax_persistent_cache_min_compile_time_secs": 0.0}
    for name, value in settings.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


def compile_once(lowered: Any) -> Any:
    """Compiles a program that runs once or a few times: with less optimization, in about two thirds of the time.

    Args:
      lowered: what `jit(...).lower(...)` returned.
    """
    if jax.default_backend() != "cpu" or jax.config.read("jax_disable_most_optimizations"):
        return lowered.compile()
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 1})


def _folder() -> Path:
    """The folder of the programs of this kind of processor: XLA compiles for the one at hand."""
    features = hashlib.sha256(library.processor_features().encode()).hexdigest()[:16]
    return library.user_cache() / "programs" / features


def _remove_damaged(folder: Path) -> None:
    """Removes programs that were written in part. JAX never replaces them, and warns of them at each call.

    Each program is looked at once, at the first call after it was written.
    """
    stamp = folder / ".checked"
    since = stamp.stat().st_mtime if stamp.exists() else 0.0
    begun = time.time()
    for path in folder.glob("*-cache"):
        if path.stat().st_mtime < since:
            continue
        content = path.read_bytes()
        if content.startswith(ZSTD):  # as JAX writes with another package, which checks it too
            continue
        try:
            zlib.decompress(content)
        except zlib.error:
            path.unlink(missing_ok=True)
    stamp.touch()
    os.utime(stamp, (begun, begun))


def _remove_oldest(folder: Path) -> None:
    """Removes the oldest programs, down to half of `MOST_BYTES`, if there are more."""
    files = [(path.stat(), path) for path in folder.glob("*/*") if path.is_file()]
    total = sum(stat.st_size for stat, _ in files)
    if total <= MOST_BYTES:
        return
    for stat, path in sorted(files, key=lambda one: one[0].st_mtime):
        path.unlink(missing_ok=True)
        total -= stat.st_size
        if total <= MOST_BYTES // 2:
            return
