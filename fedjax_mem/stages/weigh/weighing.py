"""What the weighings share: multiply on the client, divide on the server."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_mem.core import Bound, Context, Layer, Message, Stage, Traits, tree, validate


def weighing(
  weight: Callable[[jax.Array], jax.Array],
  weighs: str,
  sensitivity: Callable[[Bound], Bound],
  divisor: float | None = None,
) -> Layer:
  """Returns the layer that sums weight x payload and divides by the weights' sum.

  Args:
    weight: the message's weight (examples, float32) -> the weight used; 0 must stay 0.
    weighs: 'examples', 'equal' or 'capped', for the plan's checks.
    sensitivity: what multiplying by the weight does to a bound.
    divisor: None to divide by the weights that arrived, or a fixed number > 0 (under privacy the
      expected cohort), so that one client cannot change the divisor.
  """
  if divisor is not None:
    validate.positive(divisor=divisor)

  def multiply(ctx: Context, message: Message, state):
    del ctx
    w = weight(message.weight)
    return Message(tree.scale(w, message.payload), w, tree.scale(w, message.aux)), state, {}

  def divide(ctx: Context, message: Message, state):
    del ctx
    arrived = message.weight
    # Weights below the smallest normal number cannot arise from counts: only 0 is replaced.
    by = jnp.maximum(arrived, 1e-30) if divisor is None else jnp.float32(divisor)
    used = arrived if divisor is None else by
    payload, aux = tree.scale(1 / by, message.payload), tree.scale(1 / by, message.aux)
    return Message(payload, used, aux), state, {}

  traits = Traits(weighs=weighs, weight=weight, divisor=divisor)
  return Layer('weigh', Stage(multiply), Stage(divide), sensitivity=sensitivity, traits=traits)
