"""`sa-jax run`: settings, chains, checkpoints, results."""
