"""`sa-jax bench`: proposals per second, and the size and speed of exported networks."""
