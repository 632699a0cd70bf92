"""One script a question; each prints JSON lines. Run them from the root: python -m benchmarks.NAME."""
