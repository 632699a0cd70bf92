"""Gradients over the examples of all clients at once, and when the loss allows them."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import Accumulated, Batch, Mean, Running, Tree, keys
from fedjax_mem.stages.algorithm._base import LossFn


def adds(loss: LossFn, params: Tree, batch: dict[str, Any]) -> bool:
  """Returns whether gradients of clients add: each loss depends on its own example alone.

  That of batch normalisation does not, nor does one that uses its key (dropout), which is found out
  by tracing it on shapes. Where batches are taken in parts, for memory, none is to be pooled.
  """
  if isinstance(loss, Accumulated | Running):
    return False
  key = keys.like()
  jaxpr = jax.make_jaxpr(loss)(params, batch, key).jaxpr
  return not any(jaxpr.invars[-1] is x for equation in jaxpr.eqns for x in equation.invars)


def gradient(
  loss: LossFn, params: Tree, batch: Batch, weights: jax.Array, mask: jax.Array
) -> tuple[Tree, Mean]:
  """Returns the gradient of sum_i weights_i loss_i over the examples in `mask` [B], and losses."""

  def objective(params: Tree) -> tuple[jax.Array, Mean]:
    losses = jnp.where(mask, loss(params, batch, None), 0.0)
    return (weights * losses).sum(), Mean(losses.sum(), mask.sum(dtype=jnp.float32))

  grads, seen = jax.grad(objective, has_aux=True)(params)
  return grads, seen
