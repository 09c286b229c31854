"""The settings of JAX under which everything has to work, and a ban on derivatives, as contexts."""

import importlib
from contextlib import ExitStack, contextmanager, nullcontext

import jax
import pytest


@contextmanager
def strict():
    """The settings that only refuse; none of them may change a bit."""
    with ExitStack() as stack:
        for setting in (
            jax.numpy_dtype_promotion("strict"),
            jax.numpy_rank_promotion("raise"),
            jax.debug_key_reuse(True),
        ):
            stack.enter_context(setting)
        yield


def x64():
    """`enable_x64` lies in `jax.experimental` in old versions of JAX alone."""
    where = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    return where.enable_x64(True)


@contextmanager
def rbg(*others):
    """Keys of the other kind, with other settings."""
    with ExitStack() as stack:
        for setting in (jax.default_prng_impl("rbg"), *others):
            stack.enter_context(setting)
        yield


# In as few contexts as can be.
SETTINGS = {
    "default": nullcontext,
    "strict": strict,
    "x64, rbg, legacy keys": lambda: rbg(x64()),
    "no jit": jax.disable_jit,
}
READERS = {"strict, rbg keys": lambda: rbg(strict()), "x64, legacy keys": x64}  # of the pages


def new_key(setting):
    """The maker of keys, `jax.random.key` but for one setting."""
    return jax.random.PRNGKey if "legacy keys" in setting else jax.random.key


@contextmanager
def no_derivatives():
    """Whatever is traced here takes no derivative, or fails."""

    def refuse(*arguments, **options):
        raise AssertionError("a derivative is taken")

    with pytest.MonkeyPatch.context() as patched:
        for name in ("grad", "value_and_grad", "vjp", "jvp", "linearize", "jacfwd", "jacrev", "hessian"):
            patched.setattr(jax, name, refuse)
        yield
