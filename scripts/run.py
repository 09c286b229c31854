"""Anneals as a gin file says; the same as `sa-jax run`."""

import sys

from sa_jax.cli import entry_point

if __name__ == "__main__":
    entry_point(["run", *sys.argv[1:]])
