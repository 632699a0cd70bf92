"""What samplers by loss share: a pass over a client's examples with the model that it received."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_mem.core import Task
from fedjax_mem.core.examples import Rows


class Losses(NamedTuple):
  """Losses of one client's examples.

  Attributes:
    mean: mean loss, float32.
    square: mean squared loss, float32.
    examples: number of examples, float32.
  """

  mean: jax.Array
  square: jax.Array
  examples: jax.Array


def measured(loss: Any, task: Task, batch_size: int) -> Losses:
  """Returns the losses of a client's examples at the task's parameters, without a key (no dropout).

  Args:
    loss: (params, batch, key) -> [B] losses, one per example.
    task: the client's.
    batch_size: examples held at a time; it changes no result beyond rounding.
  """

  def part(carry: tuple[jax.Array, jax.Array], rows: Rows) -> tuple[jax.Array, jax.Array]:
    values = jnp.where(rows.mask, loss(task.params, rows.batch, None), 0.0)
    return carry[0] + values.sum(), carry[1] + jnp.square(values).sum()

  zero = jnp.float32(0)
  first, second = task.data.fold(part, (zero, zero), batch_size)
  count = task.data.count.astype(jnp.float32)
  return Losses(first / jnp.maximum(count, 1.0), second / jnp.maximum(count, 1.0), count)
