"""Updates of low rank: PowerSGD, as a client's compressor and in the paper's all-reduce form.

An array of two axes or more is a matrix M [A, B] (all axes but the last are A) and is sent as two
factors P [A, r] and Q [B, r], of one power iteration from the last round's Q. Arrays that would not
be smaller so are sent as they are. Both forms are biased and are always under error feedback, whose
memory they keep. P Qᵀ is a projection of M: no L2 norm grows.

- `low_rank`: a codec of each client: P and Q of its own M in one message. Does not add. This is not
  the paper's algorithm, but what fits a round with one message a client.
- `power_sgd`: the paper's: the sum of all M Q is made orthonormal and sent back, the sum of all
  Mᵀ P follows; two exchanges a round, and the sum of the updates has rank r. Codes add (both
  exchanges are sums), but the layer sees the stack of updates, O(C x D) memory.

Reference: Vogels, Karimireddy, Jaggi (2019), arXiv 1905.13727, Algorithms 1 and 2.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Encodes, Layer, Message, Stage, tree, validate
from fedjax_mem.kernels.codes import low_rank as kernel
from fedjax_mem.stages.compress import wire
from fedjax_mem.stages.compress.codec import (
  Exchange,
  check_floats,
  dense_size,
  nbytes,
  reported,
  sent,
)
from fedjax_mem.stages.compress.error_feedback import REMEMBERS, floats, under_feedback

Tree = Any
WARM = ('client', 'shared')
_Q = 'low_rank_q'


def _sides(shape: tuple[int, ...], rank: int) -> tuple[int, int] | None:
  """Returns (A, B) of an array that is sent as factors, None for one that is sent as it is."""
  if len(shape) < 2:
    return None
  a, b = math.prod(shape[:-1]), shape[-1]
  return (a, b) if rank <= min(a, b) and rank * (a + b) < a * b else None


def _starts(ctx: Context, rank: int) -> dict[str, jax.Array]:
  """Returns a first Q for every array that is sent as factors, by its number."""
  made = {}
  for i, x in enumerate(jax.tree.leaves(ctx.spec.update)):
    sides = _sides(x.shape, rank)
    if sides:
      made[str(i)] = kernel.start(jax.random.fold_in(ctx.key, i), sides[1], rank)
  return made


def low_rank(rank: int = 2, *, warm: str = 'client') -> Layer:
  """Returns the layer that sends P and Q of every matrix of a client's update, with feedback.

  On the wire: float32 values, the factors or the array itself, in the order of the arrays.

  Args:
    rank: r, at least 1; arrays for which it would not pay are sent as they are.
    warm: where Q starts: 'client', from the client's own last one, kept in its state; 'shared',
      from the sum of last round's, which the server keeps and sends (`bytes_more_down`).

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(rank=rank)
  validate.one_of(WARM, warm=warm)
  own = warm == 'client'
  client = _Factors(rank, own)

  def server(ctx: Context, message: Message, state):
    aux = dict(message.aux)
    summed = aux.pop(_Q)
    new = {name: kernel.warm(summed[name], last) for name, last in state.items()}
    return message._replace(aux=aux), new, {}

  keep = None if own else Stage(server, lambda ctx: _starts(ctx, rank))
  encodes = Encodes(Exchange('low_rank'))
  layer = Layer('low_rank', client=Stage(client, client.init, (encodes,)), server=keep)
  return under_feedback(layer, 'low_rank')


@dataclasses.dataclass(frozen=True)
class _Factors:
  """The client side of `low_rank`.

  Attributes:
    rank: of the factors.
    own: whether Q is the client's own, else the server's.
  """

  rank: int
  own: bool

  def init(self, ctx: Context) -> Tree:
    """Returns the state of a client: its Q of every matrix."""
    check_floats('low_rank', ctx)
    return _starts(ctx, self.rank) if self.own else {}

  def __call__(self, ctx: Context, message: Message, state: Tree):
    """Returns (message, state, metrics), as every side of a layer."""
    leaves, structure = jax.tree.flatten(message.update)
    before = state if self.own else ctx.server_state
    after: dict[str, jax.Array] = {}
    made, said = [], []
    for i, x in enumerate(leaves):
      sides = _sides(x.shape, self.rank)
      if sides is None:
        made.append(x)
        said.append(x.reshape(-1))
        continue
      p, q = kernel.encode(x.astype(jnp.float32).reshape(sides), before[str(i)])
      made.append(kernel.decode(p, q).reshape(x.shape).astype(x.dtype))
      said += [p.reshape(-1), q.reshape(-1)]
      after[str(i)] = q
    on = message.weight > 0
    sent_values = jnp.concatenate([v.astype(jnp.float32) for v in said])
    value = nbytes([wire.Floats(sent_values)], message.aux)
    metrics = reported(message.update, message.aux, value, on)
    # Of a matrix that is not finite no factor is, nor what is decoded.
    fine = tree.finite(sent_values)
    update = jax.tree.unflatten(structure, made)
    aux = message.aux
    if self.own:
      state = {name: kernel.warm(q, before[name]) for name, q in after.items()}
    else:
      # Beside what the message holds anyway: the server reads Q from it.
      aux = {**aux, _Q: tree.keep(on & fine, after)}
      down = jnp.int32(dense_size(before)) if before else jnp.int32(0)
      metrics |= sent('bytes_more_down', down, jnp.bool_(True))
    return Message(tree.keep(on, update), message.weight, aux), state, metrics


def power_sgd(rank: int = 2) -> Layer:
  """Returns PowerSGD in its all-reduce form: two exchanges a round, always under error feedback.

  Client state: the memory, float32 [D]. Server state: Q. A client sends M Q, is sent the
  orthonormal P, sends Mᵀ P (and the arrays that are no matrices): two messages up, and Q and P
  down, which `bytes_more_down` counts.

  Args:
    rank: r, at least 1; arrays for which it would not pay are sent as they are.

  Raises:
    ValueError: the rank is not >= 1.
  """
  validate.integer(rank=rank)

  def init(ctx: Context):
    check_floats('power_sgd', ctx)
    return floats(tree.zeros(ctx.spec.update))

  def server(ctx: Context, message: Message, state):
    del ctx
    aux = dict(message.aux)
    summed = aux.pop(_Q)
    new = {name: kernel.warm(summed[name], last) for name, last in state.items()}
    return message._replace(aux=aux), new, {}

  return Layer(
    'power_sgd',
    cohort=Stage(_AllReduce(rank), init, (REMEMBERS, Encodes(Exchange('power_sgd')))),
    server=Stage(server, lambda ctx: _starts(ctx, rank)),
  )


@dataclasses.dataclass(frozen=True)
class _AllReduce:
  """The cohort side of `power_sgd`: it needs the stack of all updates.

  Attributes:
    rank: of the factors.
  """

  rank: int

  def __call__(self, ctx: Context, stack: Message, memory: Tree):
    """Returns (stack, memories [C, …], metrics), as every side of a layer."""
    # One update that is not finite would spoil P for everyone: its client alone is left out.
    fine = tree.finite(stack.update, 1)
    on = ctx.cohort.arrived & (stack.weight > 0) & fine
    whole = tree.keep(on, tree.add(floats(stack.update), memory))
    leaves, structure = jax.tree.flatten(whole)
    made, summed, first, second = [], {}, [], []
    for i, x in enumerate(leaves):
      sides = _sides(x.shape[1:], self.rank)
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
    memory = tree.select(on, tree.sub(whole, decoded), memory)
    aux = {**stack.aux, _Q: summed}
    return Message(update, stack.weight, aux), memory, self._metrics(ctx, stack, first, second, on)

  def _metrics(
    self, ctx: Context, stack: Message, first: list, second: list, on: jax.Array
  ) -> dict:
    """Returns what the cohort's messages take: two each up, Q and P down."""
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
