"""`sa-jax compare`: methods by densities, seeds, networks and data sets."""
