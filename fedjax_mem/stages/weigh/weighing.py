"""What the weighings share: multiply on the client, divide on the server."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_mem.core import Bounds, Context, Layer, Message, Stage, Traits, tree, validate

# Of weights of at most 1.
KEPT = Bounds(lambda ctx, bound: bound)


def weighing(
  weight: Callable[[jax.Array], jax.Array],
  weighs: str,
  bounds: Bounds | None,
  divisor: float | None = None,
) -> Layer:
  """Returns the layer that sums weight x update and divides by the weights' sum.

  Args:
    weight: the message's weight (examples, float32) -> the weight used; 0 must stay 0.
    weighs: 'examples', 'equal' or 'capped', for the plan's checks.
    bounds: what multiplying by the weight does to a bound; None: weights are not bounded.
    divisor: None to divide by the weights that arrived, or a fixed number > 0 (under privacy the
      expected cohort), so that one client cannot change the divisor.
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

  traits = Traits(weighs=weighs, weight=weight, divisor=divisor)
  facts = () if bounds is None else (bounds,)
  return Layer('weigh', client=Stage(multiply, facts=facts), server=Stage(divide), traits=traits)
