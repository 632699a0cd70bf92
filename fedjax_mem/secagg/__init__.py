"""The protocol of secure aggregation, run on the host by `cryptography`; see `protocol`."""
