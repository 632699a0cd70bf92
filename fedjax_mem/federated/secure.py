"""Secure aggregation as an object: the protocol's own front, under the name users look for."""

from fedjax_mem.stages.secure.aggregator import EncryptedUpdate, SecureAggregator
