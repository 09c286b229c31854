"""The machine that a command runs on: processor, cores, memory, versions."""

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax
import psutil

from sa_jax.types import InputError

# Packages whose versions every result states.
PACKAGES = ("sa_jax", "jax", "jaxlib", "flax", "optax", "numpy")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of `PACKAGES`, by name."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def processor() -> str:
    """Returns the name of the processor's model."""
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Returns what a measurement ran on: processor, cores, devices and versions, as JSON values."""
    devices = [device.device_kind for device in jax.local_devices()]
    return {"processor": processor(), "cores": os.cpu_count(), "devices": devices, "versions": versions()}


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_all_cores(num_chains: int) -> None:
    """Makes one host device and one thread per core, at most `num_chains`, to spread chains or rows over."""
    cores = available_cores()
    # XLA's CPU client takes its number of threads from NPROC. With more threads than its program can use, one
    # chain of many samples takes twice as long.
    os.environ.setdefault("NPROC", str(min(num_chains, cores)))
    # If a caller has used JAX before, its number of devices can no longer change.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", min(num_chains, cores))


def free_memory(device: Any) -> int | None:
    """Returns the free bytes of a device, or of the host's memory if it is a CPU; None if unknown."""
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None
    free = psutil.virtual_memory().available
    # A container may use less memory than its host has: cgroup version 2 states its limit, or else version 1.
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        paths = [Path("/sys/fs/cgroup", name) for name in (limit_name, used_name)]
        if all(path.is_file() for path in paths):
            limit, used = (path.read_text().strip() for path in paths)
            counts = dict(line.split() for line in (paths[0].parent / "memory.stat").read_text().splitlines())
            file_cache = int(counts.get("inactive_file", 0))  # given back when needed
            return free if limit == "max" else max(min(free, int(limit) - int(used) + file_cache), 0)
    return free


def program_bytes(program: Any) -> int:
    """Returns the bytes of a compiled program's arguments, results and temporaries on one device; 0 if unknown."""
    used = program.memory_analysis()
    if used is None:  # some platforms do not tell
        return 0
    arguments_and_results = used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
    return arguments_and_results + used.temp_size_in_bytes


def check_memory(what: str, needed: int, free: int | None, settings: str) -> None:
    """Refuses what does not fit into memory.

    Args:
      what: what needs the memory, such as 'the run'.
      needed: bytes that it needs.
      free: free bytes; None if unknown.
      settings: names of the settings to lower.

    Raises:
      InputError: more memory is needed than is free.
    """
    if free is not None and needed > free:
        sizes = [f"{size / 1e6:,.1f} MB" for size in (needed, free)]
        raise InputError(f"{what} needs {sizes[0]} of memory, but only {sizes[1]} are free: lower {settings}")
