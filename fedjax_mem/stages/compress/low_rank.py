"""Low rank: each client sends two factors of its own update in one message.

Codes do not add. This is a variant of PowerSGD for rounds with one message a client; `power_sgd` is
the algorithm of the paper.

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
  reported,
  sent,
)
from fedjax_mem.stages.compress._factors import AUX, keeps_factors, sides_of, starts
from fedjax_mem.stages.compress._feedback import under_feedback

WARM = ('client', 'shared')


def low_rank(rank: int = 2, *, warm: str = 'client') -> Layer:
  """Returns the layer that sends P and Q of every matrix of an update, under error feedback.

  On the wire: float32 values, the factors or the array itself, in the order of the arrays.

  >>> matrix = jnp.outer(jnp.ones(8), jnp.arange(6.0))
  >>> made = fm.apply(matrix[None], low_rank(rank=1))
  >>> np.allclose(made.update, matrix, atol=1e-4), round(float(made.metrics['low_rank/ratio']), 1)
  (True, 2.7)

  Args:
    rank: r, at least 1; an array whose factors would not be smaller is sent as it is.
    warm: where Q starts: 'client', at the client's own last Q, kept in its state; 'shared', at the
      sum of the last round's Q, which the server keeps and sends (`bytes_more_down`).

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(rank=rank)
  validate.one_of(WARM, warm=warm)
  own = warm == 'client'
  client = _Factors(rank, own)

  keep = None if own else keeps_factors(rank)
  encodes = Encodes(Exchange('low_rank'))
  layer = Layer('low_rank', client=Stage(client, client.init, (encodes,)), server=keep)
  return under_feedback(layer, 'low_rank')


@dataclasses.dataclass(frozen=True)
class _Factors:
  """The client side of `low_rank`.

  Attributes:
    rank: rank of the factors.
    own: whether each client keeps its own Q; False: the server keeps one.
  """

  rank: int
  own: bool

  def init(self, ctx: Context) -> Tree:
    """Returns the state of a client: its Q of every matrix, if it keeps one."""
    check_floats('low_rank', ctx)
    return starts(ctx, self.rank) if self.own else {}

  def __call__(self, ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    """Returns (message, state, metrics), as every side of a layer."""
    leaves, structure = jax.tree.flatten(message.update)
    before = state if self.own else ctx.server_state
    after: dict[str, jax.Array] = {}
    decoded, sending = [], []
    for i, x in enumerate(leaves):
      sides = sides_of(x.shape, self.rank)
      if sides is None:
        decoded.append(x)
        sending.append(x.reshape(-1))
        continue
      p, q = kernel.encode(x.astype(jnp.float32).reshape(sides), before[str(i)])
      decoded.append(kernel.decode(p, q).reshape(x.shape).astype(x.dtype))
      sending += [p.reshape(-1), q.reshape(-1)]
      after[str(i)] = q
    on = message.weight > 0
    sent_values = jnp.concatenate([v.astype(jnp.float32) for v in sending])
    value = nbytes([wire.Floats(sent_values)], message.aux)
    metrics = reported(message.update, message.aux, value, on)
    # If a matrix is not finite, its factors and the decoded matrix are not finite either.
    fine = tree.finite(sent_values)
    update = jax.tree.unflatten(structure, decoded)
    aux = message.aux
    if self.own:
      state = {name: kernel.warm(q, before[name]) for name, q in after.items()}
    else:
      # The server computes its Q from this sum. It adds no bytes: Q is in the message already.
      aux = {**aux, AUX: tree.keep(on & fine, after)}
      down = jnp.int32(dense_size(before)) if before else jnp.int32(0)
      metrics |= sent('bytes_more_down', down, jnp.bool_(True))
    return Message(tree.keep(on, update), message.weight, aux), state, metrics
