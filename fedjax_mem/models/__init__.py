"""Models: published ones by name, and adapters for a user's own models."""

from fedjax_mem.models.adapters import from_functions, from_linen, from_nnx
from fedjax_mem.models.base import Model
from fedjax_mem.models.registry import MODELS, build, options

__all__ = ('MODELS', 'Model', 'build', 'from_functions', 'from_linen', 'from_nnx', 'options')
