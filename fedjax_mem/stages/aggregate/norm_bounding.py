"""Norm bounding: the server clips the norm of every update before it averages.

Reference: Sun et al. (2019), arXiv 1911.07963, section 4.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Metrics, validate
from fedjax_mem.kernels.norms import gram
from fedjax_mem.stages.aggregate import _base as kit


def norm_bounding(l2_clip_norm: float) -> Layer:
  """Returns the layer with which the server clips the L2 norm of every update, and averages.

  The server clips, so the defence does not rely on the clients; the clip of a privacy layer runs on
  them. Weights stay as they are. Metric: `clipped`, the share of the clients that were clipped.

  >>> fm.apply([[1.0], [2.0], [60.0]], norm_bounding(3.0)).update.round(3).tolist()
  [2.0]

  Args:
    l2_clip_norm: bound on the L2 norm of an update, > 0.

  Reference: Sun et al. (2019), arXiv 1911.07963, section 4.

  Raises:
    ValueError: the bound is not > 0.
  """
  validate.positive(l2_clip_norm=l2_clip_norm)

  def compute(
    ctx: Context, x: jax.Array, on: jax.Array, weights: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    del ctx, weights
    scaled, units = gram.norms(x)
    over = on & (jnp.ldexp(scaled, units) > l2_clip_norm)
    # Scaled first: the bound over the norm alone may be too small for float32.
    unit = x * jnp.ldexp(jnp.float32(1), -units)[:, None]
    bounded = unit * (l2_clip_norm / jnp.where(over, scaled, 1))[:, None]
    clipped = over.sum().astype(jnp.float32) / jnp.maximum(on.sum(), 1).astype(jnp.float32)
    return jnp.where(over[:, None], bounded, x), {'clipped': clipped}

  return kit.rule('norm_bounding', compute)
