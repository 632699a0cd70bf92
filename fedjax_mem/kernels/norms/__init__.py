"""Norms and distances: clipping to a ball, distances between rows."""
