"""Compiles the C source at first use with the system's compiler, keeps the library in the user's cache, loads it.

A library compiled here always fits the installed JAX and the processor, which one from a build farm may not.
"""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax

# The name of the foreign function.
TARGET = "sa_jax_settle"
SOURCE = Path(__file__).with_name("settle.c")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-strict-aliasing", "-ffp-contract=fast")
# Seconds after which a compiler is stopped.
MOST_SECONDS = 120
# The first that the compiler understands.
PROCESSOR_FLAGS = (["-march=native"], ["-mcpu=native"], [])


class Unavailable(Exception):
    """There is no native code here; the message says why."""


class Library(NamedTuple):
    """The loaded library.

    Attributes:
      description: the vector instructions that it uses, and the compiler that made it. Two libraries of the same
        description give the same bits.
      compile_seconds: time that it took to compile and to check; 0 if it was in the cache.
    """

    description: str
    compile_seconds: float


def load(check: Callable[[], None]) -> Library:
    """Loads the native code and registers it with JAX, and compiles it if this was not done before.

    Args:
      check: called after the code was compiled and registered. If it raises an exception, the library is not kept.

    Raises:
      Unavailable: there is no compiler, or it does not compile the source.
    """
    try:
        return _loaded(check)
    except (OSError, ValueError) as error:  # such as a CC that is no program, or an unclosed quotation in it
        raise Unavailable(f"the native code cannot be stored or loaded: {error}") from error


def _loaded(check: Callable[[], None]) -> Library:
    compiler, version = _compiler()
    headers = jax.ffi.include_dir()
    made_from = *compiler, version, *FLAGS, importlib.metadata.version("jaxlib"), headers, processor_features()
    key = _digest(SOURCE.read_text(), *made_from)
    with contextlib.ExitStack() as stack:
        try:
            folder = cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(folder / f"{key}.lock"))
        except (OSError, RuntimeError):  # no place in the user's cache: this process compiles for itself
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sa_jax-")))
        for path in folder.glob(f"{key}-*.so"):
            # A damaged library would end the process.
            if path.name == _name(key, path):
                return Library(_registered(path, version), 0.0)
        start, aside = time.perf_counter(), folder / f"{key}.{os.getpid()}"
        try:
            _compile(compiler, headers, aside)
            description = _registered(aside, version)
            check()
            aside.replace(folder / _name(key, aside))
        finally:
            aside.unlink(missing_ok=True)
        return Library(description, time.perf_counter() - start)


def _name(key: str, path: Path) -> str:
    """The name under which a library is kept: it tells what it was made from, and what it holds."""
    return f"{key}-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.so"


def _registered(path: Path, version: str) -> str:
    """Loads a library, registers its function, and returns its description."""
    library = ctypes.CDLL(str(path))
    library.vectors.restype = ctypes.c_char_p
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(library.settle), platform="cpu")
    # Without the name by which the compiler was called.
    return f"{library.vectors().decode()}, compiler {version.partition(' ')[2] or version}"


def cache_folder() -> Path:
    """Returns the folder of the compiled libraries; raises as `user_cache`."""
    return user_cache() / "native"


def user_cache() -> Path:
    """Returns the folder in which sa_jax keeps what it has compiled for the user.

    Raises:
      RuntimeError: the user has no home, or the path is relative.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if not base.is_absolute():
        raise RuntimeError(f"{base} is not an absolute path")
    return base / "sa_jax"


def _compiler() -> tuple[list[str], str]:
    """The command of the system's C compiler, and the first line of its version."""
    wanted = os.environ.get("CC")
    for name in (wanted,) if wanted else COMPILERS:
        command = shlex.split(name)
        if not command or shutil.which(command[0]) is None:
            continue
        answer = _run([*command, "--version"])
        if answer.returncode == 0 and answer.stdout:
            return command, answer.stdout.splitlines()[0].strip()
    raise Unavailable(f"no C compiler was found: looked for {wanted or ', '.join(COMPILERS)}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=MOST_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} did not end within {MOST_SECONDS} s") from error


def processor_features() -> str:
    """Returns what -march=native depends on, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return " ".join(sorted(line.split(":")[1].split()))
    return f"{platform.machine()} {platform.processor()}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _compile(compiler: list[str], headers: str, path: Path) -> None:
    said = ""
    for flags in PROCESSOR_FLAGS:
        made = _run([*compiler, *FLAGS, *flags, f"-I{headers}", str(SOURCE), "-o", str(path), "-lm"])
        if made.returncode == 0:
            return
        said = said or made.stderr.strip()
    raise Unavailable(
        f"{compiler[0]} cannot compile the native code: {said.splitlines()[0] if said else 'no message'}"
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock between processes, so that one compiles while the others wait."""
    try:
        import fcntl
    except ImportError:  # not on Windows: there each process compiles
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
