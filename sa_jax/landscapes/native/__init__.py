"""The native form of a proposal on the masks of a multilayer perceptron: C code, compiled on the user's machine.

`library` compiles and loads it, and `calls` calls it from JAX programs.
"""

from sa_jax.landscapes.native.calls import ready, settle, supports
from sa_jax.landscapes.native.library import Library, Unavailable

__all__ = ["Library", "Unavailable", "ready", "settle", "supports"]
