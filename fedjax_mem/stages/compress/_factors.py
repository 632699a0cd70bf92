"""What the low-rank codecs share: which arrays are sent as factors, and their first Q.

An array of two axes or more is a matrix M [A, B] (A joins all axes but the last). It is sent as two
factors P [A, r] and Q [B, r], from one power iteration that starts at the last round's Q. An array
whose factors would not be smaller is sent as it is. Both codecs are biased, always run under error
feedback and keep its residual. P Qᵀ is a projection of M: no L2 norm grows.
"""

import math

import jax

from fedjax_mem.core import Context, Message, Metrics, Stage, Tree
from fedjax_mem.kernels.codes import low_rank as kernel

AUX = 'low_rank_q'  # the entry of aux that sums the clients' Q


def sides_of(shape: tuple[int, ...], rank: int) -> tuple[int, int] | None:
  """Returns (A, B) of an array that is sent as factors, None for one that is sent as it is."""
  if len(shape) < 2:
    return None
  a, b = math.prod(shape[:-1]), shape[-1]
  return (a, b) if rank <= min(a, b) and rank * (a + b) < a * b else None


def starts(ctx: Context, rank: int) -> dict[str, jax.Array]:
  """Returns the first Q of every array that is sent as factors, by the array's number."""
  made = {}
  for i, x in enumerate(jax.tree.leaves(ctx.spec.update)):
    sides = sides_of(x.shape, rank)
    if sides:
      made[str(i)] = kernel.start(jax.random.fold_in(ctx.key, i), sides[1], rank)
  return made


def keeps_factors(rank: int) -> Stage:
  """Returns the server side that keeps the sum of the clients' Q, where the next round starts."""

  def server(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    del ctx
    aux = dict(message.aux)
    summed = aux.pop(AUX)
    new = {name: kernel.warm(summed[name], last) for name, last in state.items()}
    return message._replace(aux=aux), new, {}

  return Stage(server, lambda ctx: starts(ctx, rank))
