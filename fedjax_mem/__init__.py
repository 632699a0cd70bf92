"""fedjax_mem: a simulator of federated learning in JAX."""
