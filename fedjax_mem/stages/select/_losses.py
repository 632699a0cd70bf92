"""What samplers that ask for losses share: a pass over a client's examples at the model it got."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_mem.core import Task


class Losses(NamedTuple):
  """Losses of one client's examples.

  Attributes:
    mean: their mean, float32.
    square: mean of their squares, float32.
    examples: how many they are, float32.
  """

  mean: jax.Array
  square: jax.Array
  examples: jax.Array


def measured(loss: Any, task: Task, batch_size: int) -> Losses:
  """Returns the losses of a client's examples at the task's parameters, without a key (no dropout).

  Args:
    loss: (params, batch, key) -> [B] losses, one an example.
    task: the client's.
    batch_size: examples held at a time; it changes no result beyond rounding.
  """
  data = task.data
  size = min(batch_size, data.capacity)

  def part(number: jax.Array, carry: tuple) -> tuple:
    positions = number * size + jnp.arange(size, dtype=jnp.int32)
    values = jnp.where(positions < data.count, loss(task.params, data.take(positions), None), 0.0)
    return carry[0] + values.sum(), carry[1] + jnp.square(values).sum()

  zero = jnp.float32(0)
  first, second = jax.lax.fori_loop(0, -(-data.longest // size), part, (zero, zero))
  count = data.count.astype(jnp.float32)
  return Losses(first / jnp.maximum(count, 1.0), second / jnp.maximum(count, 1.0), count)
