"""Simulated annealing, replica exchange and population annealing on any landscape."""
