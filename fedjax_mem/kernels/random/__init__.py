"""Random words and noise."""
