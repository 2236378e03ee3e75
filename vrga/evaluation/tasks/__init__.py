"""Benchmarks for lmms-eval: a YAML file each, and the functions these name."""
