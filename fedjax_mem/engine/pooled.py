"""The pooled round: one local step of all clients, computed as one gradient over their examples.

All clients begin their first local step at the same parameters w. If it is the only step, client k
with weight p_k and n_k examples sends the gradient of its mean loss (times the learning rate), and
the weighted sum is

    sum_k p_k grad (1 / n_k) sum_i loss(w, x_ki) = grad sum_k sum_i (p_k / n_k) loss(w, x_ki),

a single gradient over the examples of the whole cohort. A few large matrix products compute it, and
no client's own update is ever formed. This is possible if no layer between the algorithm and the
sum needs the update of a single client, which `find` decides from the layers and their facts.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fedjax_mem.core import (
  Batch,
  Examples,
  Layer,
  Mean,
  Message,
  Pool,
  Pools,
  Population,
  Round,
  Total,
  Tree,
  Weighs,
  tree,
)
from fedjax_mem.engine import apart
from fedjax_mem.engine.cast import Cast, Row, context
from fedjax_mem.engine.clients import PLAIN, spread
from fedjax_mem.engine.mesh import undivided
from fedjax_mem.engine.setting import Setting

# (algorithm, weighing layer, pool)
Found = tuple[Layer, Layer, Pool]
# Examples in one product. Beyond a few thousand a larger product is no faster, and needs memory.
_EXAMPLES = 8192


def find(layers: Round, setting: Setting, params: Tree, population: Population) -> Found | None:
  """Returns (algorithm, weighing layer, pool) if the round can be pooled, else None.

  Args:
    layers: of the round.
    setting: of the run.
    params: shapes of the parameters.
    population: the examples, or their shapes.
  """
  algorithm, weighing = layers.algorithm, layers.weighing
  # Any other client, cohort or server side might need the update of a single client.
  others = [x for x in layers if x not in (algorithm, weighing)]
  pools = algorithm.fact(Pools)
  plain = all(set(x.sides) <= {'select'} for x in others) and algorithm.cohort is None
  if not plain or pools is None or weighing.cohort is not None or layers.weighs.of is None:
    return None
  batch = jax.eval_shape(
    lambda d: _gathered(d.arrays, d.index, jnp.zeros(1, jnp.int32), setting), population
  )
  pool = pools.find(setting.shape, params, batch)
  return None if pool is None else (algorithm, weighing, pool)


def run(
  found: Found, setting: Setting, cast: Cast, row: Row
) -> tuple[Message, dict[str, jax.Array]]:
  """Returns (sum of messages, metrics of the algorithm) over the cohort.

  Args:
    found: from `find`.
    setting: of the run.
    cast: of the round.
    row: the cohort.
  """
  algorithm, weighing, pool = found
  ctx = context(setting.layers, algorithm, 'cohort', cast, setting.specs)
  weight: Any = weighing.client.fact(Weighs).of  # type: ignore[union-attr]

  layout = setting.layout
  chunk = clients_at_once(setting)
  layout = layout._replace(chunk=chunk, looped=False)

  def step(
    everyone: tuple[Cast, Row], carry: Tree, packed: tuple[Row, jax.Array]
  ) -> tuple[Tree, Tree, Tree]:
    (given, cohort), (rows, slot) = everyone, packed
    if setting.apart:
      given, rows = apart.gathered(setting, layout, given, rows, cohort, slot)
    # Each of a client's n_k examples weighs p_k / n_k; padding and lost clients weigh 0.
    on = rows.client.arrived & (rows.count > 0)
    used = tree.keep(on, weight(rows.count.astype(jnp.float32)))
    each = used / jnp.maximum(rows.count, 1).astype(jnp.float32)
    place = jnp.arange(setting.shape.capacity, dtype=jnp.int32)
    mask = (place[None, :] < rows.count[:, None]) & on[:, None]
    weights = jnp.where(mask, each[:, None], 0.0)
    # Padding repeats a client's last example. Another client's could be NaN, and 0 * NaN is not 0.
    within = jnp.minimum(place[None, :], jnp.maximum(rows.count - 1, 0)[:, None])
    where = (rows.start[:, None] + within).reshape(-1)
    batch = _gathered(given.arrays, given.rows, where, setting)
    update, metrics = pool(
      ctx._replace(params=given.params),
      batch,
      weights.reshape(-1),
      mask.reshape(-1),
      on.sum(dtype=jnp.int32),
    )
    update = undivided(lambda x: x)(update)
    return (Message(update, used.sum(), {}), metrics), carry, ((), ())

  # Only what a step reads goes to all devices; the context is made once, outside of the steps.
  everyone = cast._replace(servers={}, cohort=None)
  (message, metrics), _, _ = spread(
    step,
    (everyone, row),
    (),
    (row, jnp.arange(setting.capacity, dtype=jnp.int32)),
    chunk=chunk,
    mesh=layout.mesh,
    summed=PLAIN,
    specs=(apart.specs(everyone), PartitionSpec()) if setting.apart else None,
  )
  return message, {f'{algorithm.name}/{name}': _value(x) for name, x in metrics.items()}


def _gathered(arrays: Batch, index: jax.Array, where: jax.Array, setting: Setting) -> Batch:
  """Returns the batch of the examples at the places `where` [B] of the population's index."""
  zero, number = jnp.int32(0), jnp.int32(index.shape[0])
  capacity = setting.shape.capacity
  whole = Examples(arrays, index, zero, number, zero, capacity, False, setting.transforms)
  return whole.take(where)


def clients_at_once(setting: Setting) -> int:
  """Returns how many clients' examples are in one product on a device."""
  return _chunk(setting.capacity // setting.layout.devices, setting.shape.capacity)


def _chunk(clients: int, capacity: int) -> int:
  """Returns the largest divisor of `clients` whose examples fit one product."""
  most = max(1, _EXAMPLES // capacity)
  return max(k for k in range(1, clients + 1) if clients % k == 0 and k <= most)


def _value(metric: Mean | Total) -> jax.Array:
  if not isinstance(metric, Mean):
    return metric.value
  return jnp.where(metric.count > 0, metric.total / metric.count, jnp.nan)
