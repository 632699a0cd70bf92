"""Error feedback: what a codec leaves out is added to the client's next update.

A client sends C(update + memory) and remembers update + memory - decoded. For codecs that send less
error than they are given (top-k, unscaled random-k, sign, low rank, …) this restores the rate of
convergence without compression. Adds: if the codec does. Biased in a round, not over rounds.

Client state: the memory, float32 [D] a client, so [N, D] on the devices; it moves only when the
client takes part, and a client that rarely returns sends stale errors, which the plan of a run
warns of. The memory is in the units of the message: after the weighing, of weighted updates.

Privacy: the memory has no bound, so nothing is bounded after it: put it before the clip.

Reference: Seide et al. (2014), Interspeech; Stich et al. (2018), arXiv 1809.07599, Algorithm 1;
Karimireddy et al. (2019), arXiv 1901.09847.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Encodes, Layer, Mean, Message, Stage, tree
from fedjax_mem.stages.compress import named
from fedjax_mem.stages.compress.codec import Exchange, unbounded

Tree = Any
_ALREADY = 'it is under error feedback already'
REMEMBERS = unbounded('what error feedback remembers has no bound')


def error_feedback(codec: Layer | str | Mapping[str, Any]) -> Layer:
  """Returns the layer of a codec under error feedback.

  Metrics: those of the codec, and `memory`, the norm of what clients remember, on average.

  Args:
    codec: a layer that encodes, its name, or a table {use = name, option = value, …}.

  Raises:
    ValueError: not a codec, or one whose memory would grow without end.
  """
  layer = named.layer(codec=codec)
  fact = layer.client.fact(Encodes) if layer.client and layer.cohort is None else None
  if fact is None or fact.codec.feedback == _ALREADY:
    raise ValueError(
      f'codec must be a layer that encodes, without error feedback of its own, got {layer.name!r}.'
    )
  if fact.codec.feedback:
    raise ValueError(
      f'codec must send less error than it is given to be under error feedback, got '
      f'{layer.name!r}: {fact.codec.feedback}.'
    )
  return under_feedback(layer, 'error_feedback')


def under_feedback(layer: Layer, name: str) -> Layer:
  """Returns the layer under error feedback, with a name of its own."""
  client = Feedback(layer)
  codec = layer.client.fact(Encodes).codec  # type: ignore[union-attr]
  encodes = Encodes(Exchange(codec.name, codec.adds, _ALREADY))
  return layer._replace(name=name, client=Stage(client, client.init, (REMEMBERS, encodes)))


def floats(update: Tree) -> Tree:
  """Returns the update in float32."""
  return jax.tree.map(lambda x: x.astype(jnp.float32), update)


@dataclasses.dataclass(frozen=True)
class Feedback:
  """The client side of a codec under error feedback.

  Attributes:
    layer: of the codec.
  """

  layer: Layer

  def __call__(self, ctx: Context, message: Message, state: Tree):
    """Returns (message, state, metrics), as every side of a layer."""
    memory, inner = state
    whole = tree.add(floats(message.update), memory)
    asked = jax.tree.map(lambda x, like: x.astype(like.dtype), whole, message.update)
    apply = self.layer.client.apply  # type: ignore[union-attr]
    sent, new, metrics = apply(ctx, message._replace(update=asked), inner)
    # What the server would make of this message alone.
    own = sent
    if self.layer.server is not None:
      own, _, _ = self.layer.server.apply(ctx, sent, ctx.server_state)
    on = message.weight > 0
    takes = on.astype(jnp.float32)
    left = tree.select(on, tree.sub(whole, floats(own.update)), memory)
    state = left, tree.select(on, new, inner)
    return sent, state, {**metrics, 'memory': Mean(takes * tree.norm(left), takes)}

  def init(self, ctx: Context) -> Tree:
    """Returns the state of a client: an empty memory, and the codec's own."""
    inner = self.layer.row(ctx)
    return floats(tree.zeros(ctx.spec.update)), inner
