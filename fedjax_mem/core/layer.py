"""A layer: one concern of a round, with up to four sides around one sum."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from fedjax_mem.core.context import Context
from fedjax_mem.core.facts import SIDES, Fact
from fedjax_mem.core.message import Metrics
from fedjax_mem.core.tree import Tree

F = TypeVar('F', bound=Fact)

# (ctx, batch of examples [B, ...], weights [B], mask [B], number of their clients) -> (sum of
# weight x what an example adds to the update, metrics: `Mean`s and `Total`s with the names that
# the client side gives). An example's weight is its client's weight over the client's number of
# examples.
Pool = Callable[
  [Context, dict[str, jax.Array], jax.Array, jax.Array, jax.Array], tuple[Tree, Metrics]
]


class IncompatibleStages(ValueError):
  """Two layers break a guarantee together, or the layers do not make a round."""


class Stage(NamedTuple):
  """One side of a layer.

  Attributes:
    apply: (ctx, value, state) -> (value, state, metrics), always in this order. The state keeps
      its structure, shapes and dtypes. Metrics are scalars, `Mean`s or `Total`s; of a scalar of
      clients, the mean over the cohort is reported.
    init: ctx -> the first state; None: no state, or another side of its pair declares it.
    facts: what this side promises, at most one fact of each kind.
  """

  apply: Callable[[Context, Any, Tree], tuple[Any, Tree, Metrics]]
  init: Callable[[Context], Tree] | None = None
  facts: tuple[Fact, ...] = ()

  def fact(self, kind: type[F]) -> F | None:
    """Returns the fact of exactly this type, or None where it is not stated."""
    return next((x for x in self.facts if type(x) is kind), None)


class Layer(NamedTuple):
  """One concern, with its sides around one sum; a side that is None passes its value on.

  A layer has two states: its client and cohort sides share a table of rows [N, ...], one a client;
  its select and server sides share one value. In each pair one side declares the state, by `init`.

  Attributes:
    name: distinct in a round; keys, states and metrics are named by it.
    select: Draw -> Draw, before any work.
    client: Task -> Task, Task -> Message (the algorithm's) or Message -> Message, for ONE client.
    cohort: Message [C, ...] -> Message [C, ...], the only place where single messages are seen. In
      one layer the client side runs first.
    server: Message -> Message, Message -> parameters (the algorithm's) or parameters -> parameters
      (of layers before it).
  """

  name: str
  select: Stage | None = None
  client: Stage | None = None
  cohort: Stage | None = None
  server: Stage | None = None

  @property
  def sides(self) -> dict[str, Stage]:
    """The sides of this layer that are not None, by name, in the order in which they run."""
    return {side: x for side, x in zip(SIDES, self[1:], strict=True) if x is not None}

  def fact(self, kind: type[F]) -> F | None:
    """Returns the fact of exactly this type on the first side that states it, or None."""
    found = (stage.fact(kind) for stage in self.sides.values())
    return next((x for x in found if x is not None), None)

  def row(self, ctx: Context) -> Tree:
    """Returns the first state of one client."""
    return self._first(('client', 'cohort'), ctx)

  def value(self, ctx: Context) -> Tree:
    """Returns the first state of the server."""
    return self._first(('select', 'server'), ctx)

  def _first(self, pair: tuple[str, ...], ctx: Context) -> Tree:
    made = [x.init for side, x in self.sides.items() if side in pair and x.init is not None]
    # A Python number is an array for everyone after.
    whole = lambda x: x if hasattr(x, 'dtype') else jnp.asarray(x)
    return jax.tree.map(whole, made[0](ctx)) if made else ()
