"""Measures proposals per second; the same as `sa-jax bench`."""

import sys

from sa_jax.cli import entry_point

if __name__ == "__main__":
    entry_point(["bench", *sys.argv[1:]])
