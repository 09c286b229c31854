"""Measures proposals per second; the same as `sa-jax bench`."""

import sys

from sa_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
