"""One script a question, JSON lines out; from the root: `python -m benchmarks.NAME`."""
