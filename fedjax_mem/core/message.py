"""What passes from side to side in a round: cohorts, tasks, messages, metrics, states.

Letters in shapes: N clients in the population, C clients in a cohort (padded), D parameters,
B examples in a batch.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_mem.core.examples import Examples
from fedjax_mem.core.tree import Tree

Metrics = dict[str, Any]


class Member(NamedTuple):
  """One client of a cohort; a cohort is the same tuple of arrays [C].

  Attributes:
    id: int32, position in the population; an id >= N is padding.
    real: bool, false for padding.
    arrived: bool, false for padding and for a client that drops out after its work.
    chance: float32 in (0, 1], its probability of being selected (drop-out not included).
  """

  id: jax.Array
  real: jax.Array
  arrived: jax.Array
  chance: jax.Array


class Draw(NamedTuple):
  """What the select sides of a round pass on.

  Attributes:
    eligible: [N] bool, which clients may be drawn; None: all, without work that grows with N.
    cohort: `Member` of arrays [C], in which no client occurs twice; None before the draw.
  """

  eligible: Any = None
  cohort: Any = None


class Task(NamedTuple):
  """What enters the client sides: the parameters to start from and the client's examples."""

  params: Tree
  data: Examples


class Message(NamedTuple):
  """What leaves the client sides. Every leaf is summed over the cohort.

  Attributes:
    update: server - client (or a tree that contains it).
    weight: float32 scalar; 0 means "takes no part". On the server, after the division, the divisor
      that was used.
    aux: dict of what is summed beside the update and is neither clipped nor compressed. The layer
      whose client side adds an entry removes it on the server.
  """

  update: Tree
  weight: jax.Array
  aux: dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
  """A client metric reported as sum(total) / sum(count) over the cohort (example-weighted)."""

  total: jax.Array
  count: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Total:
  """A client metric reported as its sum over the cohort (examples, bits, steps)."""

  value: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Covered:
  """A metric that a claim of privacy covers; the side that wraps it answers for that.

  It is noised as it is accounted for, or public, or computed from what is released. Under a claim
  any other metric is reported as not covered.

  >>> Covered(Total(jnp.float32(2)))
  Covered(value=Total(value=Array(2., dtype=float32)))

  Attributes:
    value: a scalar, a `Mean` or a `Total`.
  """

  value: Any


class State(NamedTuple):
  """The whole state of a run between two rounds: what a checkpoint holds.

  Attributes:
    round: int32, number of rounds done.
    params: the server's parameters.
    clients: for each layer, the table [N, ...] of its client states.
    servers: for each layer, its server state.
  """

  round: jax.Array
  params: Tree
  clients: dict[str, Tree]
  servers: dict[str, Tree]


def scalar_member(id: jax.typing.ArrayLike, real: jax.typing.ArrayLike = True) -> Member:
  """Returns the row of one client that was certain to be drawn; it has arrived if it is real."""
  return Member(jnp.asarray(id, jnp.int32), jnp.bool_(real), jnp.bool_(real), jnp.float32(1))
