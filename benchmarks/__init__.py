"""Benchmarks: each prints a ratio to a plain baseline measured in the same run."""
