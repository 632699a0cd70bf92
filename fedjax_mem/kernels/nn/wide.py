"""Floats of 16 bits in float32, for sums and transforms in which their rounding would grow.

>>> at_least_float32(jnp.bfloat16(1 / 3)).item(), at_least_float32(jnp.float32(2)).dtype
(0.333984375, dtype('float32'))
"""

from typing import Any

import jax
import jax.numpy as jnp


def dtype_of(x: jax.Array) -> Any:
  """Returns float32 for floats of 16 bits, and the dtype of any other x."""
  # Not `promote_types`, which jax's strict promotion refuses for float64.
  return x.dtype if x.dtype.itemsize > 2 else jnp.dtype(jnp.float32)


def at_least_float32(x: jax.Array) -> jax.Array:
  """Returns x in `dtype_of(x)`."""
  return x.astype(dtype_of(x))
