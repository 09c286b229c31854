"""The commands of `sa-jax`: settings, processes, time and progress."""
