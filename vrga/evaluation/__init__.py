"""Evaluation with lmms-eval: reading answers, scoring them, and the benchmarks it lacks."""
