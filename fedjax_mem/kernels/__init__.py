"""Jitted kernels: arrays in, arrays out, plain `jax.numpy` and `jax.lax` underneath."""
