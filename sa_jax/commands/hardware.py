"""The machine that a command runs on: processor, cores, memory, versions."""

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax
import psutil


def machine() -> dict[str, Any]:
    """What ran the measurement."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    versions = {name: importlib.metadata.version(name) for name in ("sa_jax", "jax", "jaxlib", "flax", "numpy")}
    devices = [device.device_kind for device in jax.local_devices()]
    return {"processor": model, "cores": os.cpu_count(), "devices": devices, "versions": versions}


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_all_cores(num_chains: int) -> None:
    """Makes one host device per core, so that chains or rows share out over them, and as many threads."""
    cores = available_cores()
    # XLA's CPU client takes its number of threads from here. With more than its program can use, one chain of many
    # samples takes twice as long.
    os.environ.setdefault("NPROC", str(min(num_chains, cores)))
    # Where a caller has used JAX before, its number of devices is fixed.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", min(num_chains, cores))


def free_memory(device: Any) -> int | None:
    """Bytes that can still be taken on a device, or of the host's memory if it is a CPU; None if unknown."""
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None
    free = psutil.virtual_memory().available
    # What a container may take is less than what its host has: cgroup version 2, else 1.
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        paths = [Path("/sys/fs/cgroup", name) for name in (limit, used)]
        if all(path.is_file() for path in paths):
            most, taken = (path.read_text().strip() for path in paths)
            counts = dict(line.split() for line in (paths[0].parent / "memory.stat").read_text().splitlines())
            files = int(counts.get("inactive_file", 0))  # given back when needed
            return free if most == "max" else max(min(free, int(most) - int(taken) + files), 0)
    return free


def program_bytes(program: Any) -> int:
    """Arguments, results and temporaries of a compiled program on one device; 0 where that is not known."""
    used = program.memory_analysis()
    if used is None:  # not every platform tells
        return 0
    kept = used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
    return kept + used.temp_size_in_bytes
