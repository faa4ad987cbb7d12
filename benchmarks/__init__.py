"""Speed, as ratios of two pieces of work that take turns in one process: ``python -m benchmarks [NAME ...]``."""
