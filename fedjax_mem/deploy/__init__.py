"""Real machines: the same rounds over mutual TLS, through NVIDIA FLARE."""
