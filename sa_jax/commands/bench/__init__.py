"""`sa-jax bench`: proposals per second, and exported networks timed."""
