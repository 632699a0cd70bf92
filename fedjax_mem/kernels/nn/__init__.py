"""Layers of networks, written for many clients side by side."""
