"""What the weighings share: the client multiplies by its weight, the server divides."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import (
  Bounds,
  Context,
  Layer,
  Message,
  Metrics,
  Stage,
  Tree,
  Weighs,
  packing,
  validate,
)

# Holds for weights of at most 1: they do not increase any norm.
KEPT = Bounds(lambda ctx, bound: bound)


def weighing(
  weight: Callable[[jax.Array], jax.Array],
  bounds: Bounds | None,
  divisor: float | None = None,
  alike: bool = False,
  of_clients: np.ndarray | None = None,
) -> Layer:
  """Returns the layer that sums weight x update and divides by the sum of the weights.

  Args:
    weight: the message's weight (examples, float32) -> the weight used; 0 must stay 0.
    bounds: what multiplying by the weight does to a bound; None: weights are not bounded.
    divisor: None to divide by the weights that arrived, or a fixed number > 0 (under privacy the
      expected cohort), so that a single client cannot change the divisor.
    alike: whether every client that takes part has the weight 1.
    of_clients: [N] float32, factor of each client's weight; None: 1.
  """
  if divisor is not None:
    validate.positive(divisor=divisor)

  def multiply(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    w = weight(message.weight)
    if of_clients is not None:
      w = w * jnp.asarray(of_clients)[ctx.client.id]
    update, aux = _times(w, message)
    return Message(update, w, aux), state, {}

  def divide(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    del ctx
    arrived = message.weight
    # Sums of positive weights are far above 1e-30, so that only 0 is replaced.
    by = jnp.maximum(arrived, 1e-30) if divisor is None else jnp.float32(divisor)
    used = arrived if divisor is None else by
    update, aux = _times(1 / by, message)
    return Message(update, used, aux), state, {}

  weighs = Weighs(divisor, alike, weight)
  if of_clients is not None:
    weighs = Weighs(divisor, total=float(of_clients.sum(dtype=np.float64)))
  facts = (weighs,) if bounds is None else (weighs, bounds)
  return Layer('weigh', client=Stage(multiply, facts=facts), server=Stage(divide))


def _times(c: jax.Array, message: Message) -> tuple[Tree, dict[str, Any]]:
  """Returns (c * update, c * aux)."""
  return packing.at_once(lambda x: c.astype(x.dtype) * x, (message.update, message.aux))
