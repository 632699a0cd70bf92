"""What the weighings share: multiply on the client, divide on the server."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_mem.core import Bounds, Context, Layer, Message, Stage, Weighs, tree, validate

# Of weights of at most 1.
KEPT = Bounds(lambda ctx, bound: bound)


def weighing(
  weight: Callable[[jax.Array], jax.Array],
  bounds: Bounds | None,
  divisor: float | None = None,
  alike: bool = False,
) -> Layer:
  """Returns the layer that sums weight x update and divides by the weights' sum.

  Args:
    weight: the message's weight (examples, float32) -> the weight used; 0 must stay 0.
    bounds: what multiplying by the weight does to a bound; None: weights are not bounded.
    divisor: None to divide by the weights that arrived, or a fixed number > 0 (under privacy the
      expected cohort), so that one client cannot change the divisor.
    alike: whether everyone who takes part has the weight 1.
  """
  if divisor is not None:
    validate.positive(divisor=divisor)

  def multiply(ctx: Context, message: Message, state):
    del ctx
    w = weight(message.weight)
    return Message(tree.scale(w, message.update), w, tree.scale(w, message.aux)), state, {}

  def divide(ctx: Context, message: Message, state):
    del ctx
    arrived = message.weight
    # Weights below the smallest normal number cannot arise from counts: only 0 is replaced.
    by = jnp.maximum(arrived, 1e-30) if divisor is None else jnp.float32(divisor)
    used = arrived if divisor is None else by
    update, aux = tree.scale(1 / by, message.update), tree.scale(1 / by, message.aux)
    return Message(update, used, aux), state, {}

  weighs = Weighs(divisor, alike, weight)
  facts = (weighs,) if bounds is None else (weighs, bounds)
  return Layer('weigh', client=Stage(multiply, facts=facts), server=Stage(divide))
