"""The configuration of an experiment: read strictly from TOML, checked, and built into layers."""
