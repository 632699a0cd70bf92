"""Losses computed in bfloat16, of parameters that stay in float32.

Forward and backward pass are in 16 bits: activations take half of the memory, and a GPU's products
a fraction of the time. The parameters that are trained, their gradients as an optimizer gets them
and everything that is sent or averaged stay in float32, so that steps smaller than a parameter's
rounding in 16 bits are not lost (Micikevicius et al. 2018, arXiv 1710.03740, section 3.1). bfloat16
has the exponents of float32: a loss needs no scaling (Kalamkar et al. 2019, arXiv 1905.12322).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import Batch, Running, Tree

DTYPES = ('float32', 'bfloat16')
Loss = Callable[..., jax.Array]


def in_bfloat16(loss: Loss) -> Loss:
  """Returns the loss with its forward and backward pass in bfloat16, and its values in float32.

  Parameters and inputs that are floats are cast; labels ('y'), running statistics, integers and
  keys are not. A loss computes in bfloat16 as far as it follows the dtypes of what it gets. The
  models of this package do; tasks take the outputs to float32 before the loss, and group
  normalisation and Winograd's transforms compute in float32 in between.

  >>> loss = in_bfloat16(lambda params, batch, key=None: batch['x'] @ params)
  >>> loss(jnp.float32([1 / 3]), {'x': jnp.ones((1, 1))}).tolist()  # 1 / 3 in 8 bits
  [0.333984375]

  Args:
    loss: (params, batch, key=None) -> losses [B], or a `core.Running`.
  """
  if isinstance(loss, Running):
    return Running(loss.evaluated, _trained(loss.trained), loss.local)

  def low(params: Tree, batch: Batch, key: Any = None) -> jax.Array:
    return loss(_cast(params), _inputs(batch), key).astype(jnp.float32)

  return low


def _trained(trained: Callable[..., Any]) -> Callable[..., Any]:
  """Returns `Running.trained` in bfloat16; statistics are found and kept in float32."""

  def low(
    params: Tree, statistics: Tree, batch: Batch, mask: jax.Array, key: Any
  ) -> tuple[jax.Array, Tree]:
    losses, new = trained(_cast(params), statistics, _inputs(batch), mask, key)
    new = jax.tree.map(lambda x, old: x.astype(old.dtype), new, statistics)
    return losses.astype(jnp.float32), new

  return low


def _inputs(batch: Batch) -> Batch:
  """Returns a batch with all floats but the labels in bfloat16."""
  return {name: x if name == 'y' else _cast(x) for name, x in batch.items()}


def _cast(values: Tree) -> Tree:
  """Returns a tree with its floats in bfloat16."""

  def one(x: jax.Array) -> jax.Array:
    return x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x

  return jax.tree.map(one, values)
