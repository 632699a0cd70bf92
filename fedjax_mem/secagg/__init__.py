"""Secure aggregation, the real protocol, on the host, by `cryptography`; see `protocol`."""
