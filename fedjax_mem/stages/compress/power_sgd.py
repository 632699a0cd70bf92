"""PowerSGD as in the paper, by all-reduce: two exchanges a round, a sum of rank r.

Clients send M Q; the server makes the sum of all M Q orthonormal and sends it back as P; clients
send Mᵀ P. Codes add in the protocol, where both exchanges are sums, but this layer computes on the
stack of updates, O(C x D) memory.

Reference: Vogels, Karimireddy, Jaggi (2019), arXiv 1905.13727, Algorithms 1 and 2.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fedjax_mem.core import (
  Context,
  Encodes,
  Layer,
  Message,
  Metrics,
  Stage,
  Tree,
  tree,
  validate,
  wire,
)
from fedjax_mem.kernels.codes import low_rank as kernel
from fedjax_mem.stages.compress._base import (
  Exchange,
  check_floats,
  dense_size,
  nbytes,
  sent,
)
from fedjax_mem.stages.compress._factors import AUX, keeps_factors, sides_of
from fedjax_mem.stages.compress._feedback import REMEMBERS


def power_sgd(rank: int = 2) -> Layer:
  """Returns PowerSGD in its all-reduce form: two exchanges a round, always under error feedback.

  Client state: the residual, float32 [D]. Server state: Q. A client sends M Q, receives the
  orthonormal P, and sends Mᵀ P and the arrays that are not factored: two messages up. Q and P are
  sent down, and `bytes_more_down` counts them.

  >>> matrix = jnp.outer(jnp.ones(8), jnp.arange(6.0))
  >>> made = fm.apply(jnp.stack([matrix, 3 * matrix]), power_sgd(rank=1))
  >>> np.allclose(made.update, 2 * matrix, atol=1e-4)
  True

  Args:
    rank: r, at least 1; an array whose factors would not be smaller is sent as it is.

  Raises:
    ValueError: the rank is not >= 1.
  """
  validate.integer(rank=rank)

  def init(ctx: Context) -> Tree:
    check_floats('power_sgd', ctx)
    return tree.floats(tree.zeros(ctx.spec.update))

  return Layer(
    'power_sgd',
    cohort=Stage(_AllReduce(rank), init, (REMEMBERS, Encodes(Exchange('power_sgd')))),
    server=keeps_factors(rank),
  )


@dataclasses.dataclass(frozen=True)
class _AllReduce:
  """The cohort side of `power_sgd`: it needs the stack of all updates.

  Attributes:
    rank: rank of the factors.
  """

  rank: int

  def __call__(self, ctx: Context, stack: Message, residual: Tree) -> tuple[Message, Tree, Metrics]:
    """Returns (stack, residuals [C, …], metrics), as every side of a layer."""
    # An update that is not finite would spoil P for all clients: its client is left out.
    fine = tree.finite(stack.update, 1)
    on = ctx.cohort.arrived & (stack.weight > 0) & fine
    whole = tree.keep(on, tree.add(tree.floats(stack.update), residual))
    leaves, structure = jax.tree.flatten(whole)
    made, summed, first, second = [], {}, [], []
    for i, x in enumerate(leaves):
      sides = sides_of(x.shape[1:], self.rank)
      if sides is None:
        made.append(x)
        second.append(x[0].reshape(-1))
        continue
      m = x.reshape(-1, *sides)
      p = kernel.orthonormal(kernel.project(m.sum(0), ctx.server_state[str(i)]))
      q = kernel.back(m, p)
      made.append(jnp.einsum('ar,cbr->cab', p, q, precision='highest').reshape(x.shape))
      summed[str(i)] = q
      first.append(p.reshape(-1))
      second.append(q[0].reshape(-1))
    decoded = jax.tree.unflatten(structure, made)
    sound = jax.tree.map(lambda x, like: x.astype(like.dtype), decoded, stack.update)
    update = tree.select(fine, sound, stack.update)
    residual = tree.select(on, tree.sub(whole, decoded), residual)
    aux = {**stack.aux, AUX: summed}
    metrics = self._metrics(ctx, stack, first, second, on)
    return Message(update, stack.weight, aux), residual, metrics

  def _metrics(
    self,
    ctx: Context,
    stack: Message,
    first: list[jax.Array],
    second: list[jax.Array],
    on: jax.Array,
  ) -> Metrics:
    """Returns the bytes of the cohort's messages: two a client up, Q and P down.

    Args:
      ctx: context of the cohort side.
      stack: messages [C, …] before they are encoded.
      first: arrays of the size of one client's first message, one for each matrix.
      second: arrays of the size of one client's second message.
      on: [C] bool, clients that take part.
    """
    aux = jax.tree.map(lambda x: x[0], stack.aux)
    up = nbytes([wire.Floats(jnp.concatenate(second))] if second else [], aux)
    down = jnp.int32(0)
    if first:
      up += nbytes([wire.Floats(jnp.concatenate(first))])
      down = jnp.int32(dense_size(ctx.server_state) + dense_size(first))
    one = jax.tree.map(lambda x: x[0], stack.update)
    ratio = jnp.float32(dense_size(one, aux)) / up.astype(jnp.float32)
    return {
      **sent('bytes_up', up, on.sum()),
      **sent('bytes_more_down', down, ctx.cohort.real.sum()),
      'ratio': ratio,
    }
