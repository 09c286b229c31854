"""`sa-jax prune`: one's own model, pruned on one's own data and written back to a file."""
