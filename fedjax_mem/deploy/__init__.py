"""Rounds on real machines, over mutual TLS, through NVIDIA FLARE (the extra `deploy`)."""
