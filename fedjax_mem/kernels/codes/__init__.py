"""Codes of vectors: bits a value, rotations, low rank, integers modulo a power of two."""
