"""Simulated annealing on any landscape: one chain, and many that help each other."""
