"""What an experiment says: read strictly from TOML, checked, and built into layers."""
