"""Clients that drop out after their work, before their message arrives."""

import zlib

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, validate


def dropout(layer: Layer, rate: float) -> Layer:
  """Returns the selecting layer with every selected client lost with probability `rate`.

  A lost client has done its work, masks included, but nothing of it arrives and its state is not
  committed. Whether a client is lost depends on (seed, round, client) alone.

  Args:
    layer: a layer that selects.
    rate: probability that a client drops out, in [0, 1].

  Raises:
    ValueError: the layer does not select, or the rate is not in [0, 1].
  """
  validate.fraction(rate=rate)
  inner = layer.select
  if inner is None:
    raise ValueError(f'layer must be one that selects, got {layer.name!r}.')

  def apply(ctx: Context, table, state):
    cohort, state, metrics = inner.apply(ctx, table, state)
    # A name of its own first: whoever splits the common key gets the children with the bare ids.
    parent = jax.random.fold_in(ctx.common, zlib.crc32(b'dropout'))
    keys = jax.vmap(lambda id: jax.random.fold_in(parent, id))(cohort.id)
    stays = jax.vmap(jax.random.uniform)(keys) >= rate
    arrived = cohort.arrived & stays
    lost = (cohort.real & ~arrived).sum(dtype=jnp.int32)
    return cohort._replace(arrived=arrived), state, {**metrics, 'dropped_out': lost}

  return layer._replace(select=inner._replace(apply=apply))
