"""Compiling, keeping and loading the native code, and what happens where that is not possible."""

import functools
import itertools
import subprocess
import warnings
from pathlib import Path

import jax
import pytest

from sa_jax import InputError
from sa_jax.landscapes import native
from sa_jax.landscapes.mlp import chosen_backend, landscape
from sa_jax.landscapes.native import calls, library
from sa_jax.networks.energies import cross_entropy

try:
    native.ready()
except native.Unavailable as reason:
    pytest.skip(f"no native code here: {reason}", allow_module_level=True)


@pytest.fixture
def new_process(monkeypatch, tmp_path):
    """As at the start of a process that has an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for module, name in ((calls, "_found"), (landscape, "_warn_once")):
        monkeypatch.setattr(module, name, functools.cache(getattr(module, name).__wrapped__))
    registered, number = library._registered, itertools.count()

    def with_a_new_name(path, version):
        name = f"{tmp_path.name}_{next(number)}"
        for module in (calls, library):
            monkeypatch.setattr(module, "TARGET", name)
        return registered(path, version)

    monkeypatch.setattr(library, "_registered", with_a_new_name)
    return tmp_path / "sa_jax" / "native"


def test_without_a_compiler_xla_takes_over(new_process, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.warns(UserWarning, match="no C compiler was found: looked for no-such-compiler; XLA evaluates"):
        assert chosen_backend("auto", cross_entropy(), "relu") == "xla"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert chosen_backend("auto", cross_entropy(), "relu") == "xla"
    with pytest.raises(InputError, match="backend 'native' is not possible: no C compiler"):
        chosen_backend("native", cross_entropy(), "relu")


def test_nothing_else_is_raised_where_the_compiler_or_the_home_is_odd(new_process, monkeypatch, tmp_path):
    program = tmp_path / "no program"
    program.write_bytes(b"\xff\x00")
    program.chmod(0o755)
    for compiler in (f"'{program}'", "gcc '"):
        monkeypatch.setenv("CC", compiler)
        calls._found.cache_clear()
        with pytest.raises(native.Unavailable):
            native.ready()
    monkeypatch.delenv("CC")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/path")
    calls._found.cache_clear()
    assert native.ready().compile_seconds > 0
    assert not Path("relative").exists()


def test_a_compiler_that_fails_is_quoted(new_process, monkeypatch, tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text(
        "#!/bin/sh\nif [ $1 = --version ]; then echo broken 1.0; else echo 'no such flag' >&2; exit 1; fi\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(native.Unavailable, match="cannot compile the native code: no such flag"):
        native.ready()
    assert not list(new_process.glob("*.so"))


def test_a_compiler_with_options_and_one_that_hangs(new_process, monkeypatch, tmp_path):
    compiler, version = library._compiler()
    monkeypatch.setenv("CC", f"{compiler[0]} -g0")
    assert library._compiler() == ([compiler[0], "-g0"], version)
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("CC", str(slow))
    monkeypatch.setattr(library, "MOST_SECONDS", 0.2)
    with pytest.raises(native.Unavailable, match=r"slow did not end within 0.2 s"):
        native.ready()


def test_the_library_is_kept_only_if_its_results_are_right(new_process, monkeypatch):
    monkeypatch.setattr(calls, "TOLERANCE", 0.0)
    with pytest.raises(native.Unavailable, match="is wrong by"):
        native.ready()
    assert not list(new_process.glob("*.so*"))


def test_the_library_is_compiled_once_and_again_if_damaged(new_process, monkeypatch, tmp_path):
    first = library.load(lambda: None)
    (kept,) = new_process.glob("*.so")
    assert first.compile_seconds > 0
    again = library.load(lambda: pytest.fail("checked again"))
    assert again == first._replace(compile_seconds=0)
    assert sorted(path.suffix for path in new_process.iterdir()) == [".lock", ".so"]
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setenv("XDG_CACHE_HOME", str(elsewhere))
    damaged = elsewhere / kept.relative_to(tmp_path)
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(kept.read_bytes()[:1000])
    assert library.load(lambda: None).compile_seconds > 0
    assert damaged.stat().st_size == kept.stat().st_size


def test_no_place_for_a_cache(new_process, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert library.load(lambda: None).compile_seconds > 0


SANITIZERS = "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [[], ["-march=native"], ["-march=x86-64-v3"], ["-U__SSE__", "-U__AVX__", "-U__AVX512F__"]],
    ids=["plain", "native", "AVX2", "vectors of C"],
)
def test_the_source_is_clean_under_sanitizers(flags, tmp_path):
    """Random networks, moves and numbers of samples, each against a full evaluation in plain C."""
    compiler, _ = library._compiler()
    test = Path(__file__).with_name("check_settle.c")
    program = tmp_path / "check"
    command = [*compiler, "-std=gnu11", *SANITIZERS, "-Wall", "-Wextra", "-Werror", "-ffp-contract=fast", *flags]
    command += [f"-I{library.SOURCE.parent}", f"-I{jax.ffi.include_dir()}", str(test), "-o", str(program), "-lm"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        if "error: " not in made.stderr or "march" in made.stderr:
            pytest.skip(f"not possible with this compiler: {made.stderr.splitlines()[0]}")
        raise AssertionError(made.stderr)
    ran = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "300 moves" in ran.stdout
