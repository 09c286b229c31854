"""Anneals as a gin file says; the same as `sa-jax run`."""

import sys

from sa_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
