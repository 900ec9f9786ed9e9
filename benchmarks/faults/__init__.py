"""Breaks things under load on a Ray cluster of several nodes: `python -m benchmarks.faults`."""
