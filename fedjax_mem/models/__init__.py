"""Models: published ones by name, and adapters for a user's own models."""

from fedjax_mem.kernels.nn.rewrite import fast_convolutions
from fedjax_mem.models.adapters import from_functions, from_linen, from_nnx
from fedjax_mem.models.base import Model, as_it_is, trained_with
from fedjax_mem.models.libraries import from_equinox, from_haiku
from fedjax_mem.models.registry import MODELS, build, options

__all__ = (
  'MODELS',
  'Model',
  'as_it_is',
  'build',
  'fast_convolutions',
  'from_equinox',
  'from_functions',
  'from_haiku',
  'from_linen',
  'from_nnx',
  'options',
  'trained_with',
)
