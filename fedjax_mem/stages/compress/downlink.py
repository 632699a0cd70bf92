"""What the server sends, compressed: clients start from the parameters as they are decoded.

The same message goes to all clients of a round, encoded with randomness of the round. The server
keeps the exact parameters: an update is a difference to what the client began with, so nothing
accumulates. The parameters themselves are encoded, not a difference (clients keep none between two
rounds), so it is for codecs that change every value a little: quantize, eden, rotate and quantize.
A sparse codec would set most parameters to zero.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, IncompatibleStages, Layer, Prepares, Stage, Task, tree
from fedjax_mem.stages.compress import _named as named
from fedjax_mem.stages.compress._base import (
  Keys,
  codec_of,
  dense_size,
  flat,
  nbytes,
  parts_of,
  sent,
  unflat,
)


def downlink(codec: Layer | str | Mapping[str, Any] = 'quantize') -> Layer:
  """Returns the layer that compresses the parameters on their way to the clients.

  It changes tasks: it comes before the algorithm (`before_algorithm = true` in a configuration).
  Metrics: `bytes_down_high` and `_low`, of the message to one client, and `ratio`.

  Args:
    codec: a codec without error feedback: a layer, its name, or a table {use = name, …}.

  Raises:
    ValueError: not such a codec, or, when the round is planned, one that does not fit.
  """
  method = codec_of(codec=named.layer(codec=codec))

  def init(ctx: Context):
    leaves, other = jax.tree.leaves(ctx.params), tree.not_floats(ctx.params)
    if other:
      raise IncompatibleStages(
        f"'downlink' encodes arrays of floats, and the parameters hold {other[0]}."
      )
    method.check(tuple(x.shape for x in leaves))
    return ()

  def encode(ctx: Context, params):
    x, shapes = flat(params)
    draws = Keys(ctx.round_key, ctx.round_key)
    return x, shapes, draws, method.encode(draws, x, shapes)

  def client(ctx: Context, task: Task, state):
    x, shapes, draws, code = encode(ctx, task.params)
    values = method.decode(draws, code, shapes)
    values = jnp.where(jnp.isfinite(x).all(), values, jnp.float32(jnp.nan))
    return task._replace(params=unflat(values, task.params)), state, {}

  def server(ctx: Context, params, state):
    *_, code = encode(ctx, ctx.params)
    value = nbytes(parts_of(code))
    ratio = jnp.float32(dense_size(ctx.params)) / value.astype(jnp.float32)
    return params, state, {**sent('bytes_down', value, jnp.bool_(True)), 'ratio': ratio}

  prepares = Prepares(by_example=True)
  return Layer('downlink', client=Stage(client, facts=(prepares,)), server=Stage(server, init))
