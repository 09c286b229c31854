"""Landscapes that evaluate a proposal by its changes only, and the same landscapes by full evaluation."""
