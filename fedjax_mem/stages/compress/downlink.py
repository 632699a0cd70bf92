"""Compression of what the server sends: clients start from the decoded parameters.

All clients of a round get the same message, encoded with the round's key. The server keeps the
exact parameters. An update is the difference to the parameters that the client started from, so
errors do not accumulate. The parameters are encoded, not their change, since clients keep no
parameters between two rounds. Use a codec that changes every value a little: quantize, eden, rotate
and quantize. A sparse codec would set most parameters to zero.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import (
  Context,
  IncompatibleStages,
  Layer,
  Metrics,
  Prepares,
  Stage,
  Task,
  Tree,
  tree,
)
from fedjax_mem.stages.compress import _named as named
from fedjax_mem.stages.compress._base import (
  Code,
  Keys,
  Shapes,
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

  It changes tasks, so place it before the algorithm (`before_algorithm = true` in a configuration).
  Metrics: `bytes_down_high` and `bytes_down_low`, of the message to one client, and `ratio`.

  >>> loss = lambda params, batch, key: batch['x'] * params.sum()
  >>> train = fm.stages.algorithm.fedavg(loss, learning_rate=0.1, batch_size=1)
  >>> layers = downlink(), train, fm.stages.select.uniform(1, 1), fm.stages.weigh.by_examples()
  >>> sim = fm.simulate(layers, jnp.ones(1000), fm.core.stack_clients([{'x': np.ones(1)}]))
  >>> round(float(sim.run(sim.init(jnp.ones(1000)), 1)[1]['downlink/ratio'][0]), 1)
  3.9

  Args:
    codec: a codec without error feedback: a layer, its name, or a table {use = name, …}.

  Raises:
    ValueError: not such a codec, or one that cannot encode the parameters; the latter is checked
      when the round is planned.
  """
  method = codec_of(codec=named.layer(codec=codec))

  def init(ctx: Context) -> Tree:
    leaves, other = jax.tree.leaves(ctx.params), tree.not_floats(ctx.params)
    if other:
      raise IncompatibleStages(
        f"'downlink' encodes arrays of floats, and the parameters hold {other[0]}."
      )
    method.check(tuple(x.shape for x in leaves))
    return ()

  def encode(ctx: Context, params: Tree) -> tuple[jax.Array, Shapes, Keys, Code]:
    x, shapes = flat(params)
    draws = Keys(ctx.round_key, ctx.round_key)
    return x, shapes, draws, method.encode(draws, x, shapes)

  def client(ctx: Context, task: Task, state: Tree) -> tuple[Task, Tree, Metrics]:
    x, shapes, draws, code = encode(ctx, task.params)
    values = method.decode(draws, code, shapes)
    values = jnp.where(jnp.isfinite(x).all(), values, jnp.float32(jnp.nan))
    return task._replace(params=unflat(values, task.params)), state, {}

  def server(ctx: Context, params: Tree, state: Tree) -> tuple[Tree, Tree, Metrics]:
    # Only counts bytes: what was sent is the parameters at the start of the round.
    *_, code = encode(ctx, ctx.params)
    value = nbytes(parts_of(code))
    ratio = jnp.float32(dense_size(ctx.params)) / value.astype(jnp.float32)
    return params, state, {**sent('bytes_down', value, jnp.bool_(True)), 'ratio': ratio}

  prepares = Prepares(by_example=True)
  return Layer('downlink', client=Stage(client, facts=(prepares,)), server=Stage(server, init))
