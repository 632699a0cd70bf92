"""Norm bounding: the server scales every update down to a norm before it averages.

Reference: Sun et al. (2019), arXiv 1911.07963, section 4.
"""

import jax.numpy as jnp

from fedjax_mem.core import Layer, validate
from fedjax_mem.kernels.norms import gram
from fedjax_mem.stages.aggregate import _base as rule


def norm_bounding(l2_clip_norm: float) -> Layer:
  """Returns the layer with which the server scales every update down to a norm, and averages.

  It is the server's defence: unlike the clip of a privacy layer, it does not ask the client to do
  it. Weights stay as they are. Metric: `clipped`, the share of the clients.

  Args:
    l2_clip_norm: bound on the L2 norm of an update, > 0.

  Reference: Sun et al. (2019), arXiv 1911.07963, section 4.

  Raises:
    ValueError: the bound is not > 0.
  """
  validate.positive(l2_clip_norm=l2_clip_norm)

  def compute(ctx, x, on, weights):
    del ctx, weights
    norms = gram.norms(x)
    factor = jnp.minimum(1, l2_clip_norm / jnp.maximum(norms, 1e-30))
    clipped = (on & (norms > l2_clip_norm)).sum().astype(jnp.float32)
    return x * factor[:, None], {'clipped': clipped / jnp.maximum(on.sum(), 1).astype(jnp.float32)}

  return rule.layer('norm_bounding', compute)
