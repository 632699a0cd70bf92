"""Which clients are hostile, and what attacks on messages share.

The hostile clients are a fixed set of the population: those with the ids 0 … f - 1, or f that a
seed draws. An attack on messages is a cohort side after the weighing. It sees the updates of all
clients (a client's update divided by its weight), replaces those of the hostile clients, and keeps
their weights. So it comes after what the clients do themselves, such as a clip, which an attacker
can leave out. A layer that is put after the attack is one that an attacker cannot evade.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import (
  Attacks,
  Bound,
  Bounds,
  Context,
  Fact,
  IncompatibleStages,
  Layer,
  Message,
  Metrics,
  Stage,
  Tree,
  tree,
  validate,
)


@dataclasses.dataclass(frozen=True)
class Hostile:
  """A fixed set of clients.

  Attributes:
    count: number of clients in the set.
    ids: [count], or None for 0 … count - 1.
  """

  count: int
  ids: Any = None

  def __call__(self, id: jax.Array) -> jax.Array:
    """Returns whether clients are in the set, booleans in the shape of their ids."""
    if self.ids is None:
      return id < self.count
    ids = jnp.asarray(self.ids, jnp.int32).reshape((1,) * id.ndim + (-1,))
    return (id[..., None] == ids).any(-1)


def hostile(attackers: float, num_clients: int | None, seed: int | None) -> Hostile:
  """Returns the set of the hostile clients.

  Args:
    attackers: f, an integer >= 0, or a share of the population in [0, 1) (rounded down).
    num_clients: N, clients of the population; None: unknown, if it is not needed.
    seed: draws the set; None: the ids 0 … f - 1.

  Raises:
    ValueError: an argument is out of range, or N is needed and unknown.
  """
  if num_clients is not None:
    validate.integer(num_clients=num_clients)
  if seed is not None:
    validate.seed(seed=seed)
  share = isinstance(attackers, float) and 0 <= attackers < 1
  if num_clients is None and (share or seed is not None):
    raise ValueError(
      f'num_clients must be given for attackers = {attackers!r} with seed = {seed!r}, got None.'
    )
  if share and num_clients is not None:
    # Rounding must not lose a client: 0.29 * 100 is below 29 in floating point.
    count = int(attackers * num_clients + 1e-9)
  elif isinstance(attackers, float):
    raise ValueError(f'attackers must be an integer >= 0 or a share in [0, 1), got {attackers!r}.')
  else:
    count = validate.integer(at_least=0, at_most=num_clients, attackers=attackers)
  if seed is None or num_clients is None:
    return Hostile(count)
  drawn = np.random.default_rng(seed).choice(num_clients, count, replace=False)
  return Hostile(count, np.sort(drawn))


@dataclasses.dataclass(frozen=True)
class Seen:
  """What attackers know about a cohort.

  Attributes:
    ctx: context of the attack's layer.
    updates: tree of [C, ...] float32, zeros for those that take no part.
    bad: [C] booleans, the hostile clients that take part.
    good: [C] booleans, the others that take part.
    weights: [C] float32, 0 for those that take no part.
  """

  ctx: Context
  updates: Tree
  bad: jax.Array
  good: jax.Array
  weights: jax.Array

  def mean(self) -> Tree:
    """Returns the mean of the honest updates (zeros if there is none)."""
    share = self.good.astype(jnp.float32) / jnp.maximum(self.good.sum(), 1).astype(jnp.float32)
    return jax.tree.map(lambda x: _product(share, x), self.updates)

  def deviation(self, mean: Tree) -> Tree:
    """Returns the standard deviation of every coordinate over the honest updates (divisor n)."""
    share = self.good.astype(jnp.float32) / jnp.maximum(self.good.sum(), 1).astype(jnp.float32)
    return jax.tree.map(
      lambda x, m: jnp.sqrt(_product(share, jnp.square(x - m[None]))), self.updates, mean
    )


def _product(share: jax.Array, x: jax.Array) -> jax.Array:
  """Returns the sum of share_i x_i, [...], for share [C] and x [C, ...]."""
  flat = jnp.matmul(share, x.reshape(len(share), -1), precision=jax.lax.Precision.HIGHEST)
  return flat.reshape(x.shape[1:])


# Returns the forged updates of hostile clients: a tree of [...] (the same for all) or of [C, ...].
Forge = Callable[[Seen], Tree]


@dataclasses.dataclass(frozen=True)
class Attack:
  """The cohort side of an attack on messages: stack -> stack.

  Attributes:
    who: the hostile clients.
    forge: the updates that they send.
    same: whether all of them send the same update.
    independent: whether the update of a hostile client depends on no other client; then, under
      privacy, a clip may come after the attack.
  """

  who: Hostile
  forge: Forge
  same: bool = True
  independent: bool = False

  def __call__(self, ctx: Context, stack: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    """Returns (stack, state, metrics); metric: `attackers`, the hostile clients in the cohort."""
    on = ctx.cohort.arrived & (stack.weight > 0)
    bad = on & self.who(ctx.cohort.id)
    weights = jnp.where(on, stack.weight, 0)
    floats = jax.tree.map(lambda x: x.astype(jnp.float32), stack.update)
    updates = tree.keep(on, tree.scale(1 / jnp.where(on, weights, 1), floats))
    sent = self.forge(Seen(ctx, updates, bad, on & ~bad, weights))
    if self.same:
      sent = jax.tree.map(lambda x, u: jnp.broadcast_to(x[None], u.shape), sent, updates)
    sent = jax.tree.map(lambda x, p: x.astype(p.dtype), tree.scale(weights, sent), stack.update)
    count = bad.sum(dtype=jnp.int32)
    return (
      stack._replace(update=tree.select(bad, sent, stack.update)),
      state,
      {'attackers': count},
    )


def layer(name: str, attack: Attack) -> Layer:
  """Returns the layer of an attack on messages."""

  def init(ctx: Context) -> Tree:
    other = tree.not_floats(ctx.spec.update)
    if other:
      raise IncompatibleStages(
        f'{name!r} works on updates of floats, and what it receives holds {other[0]}: put it '
        'before the layer that encodes.'
      )
    if ctx.spec.aux:
      raise IncompatibleStages(
        f'{name!r} forges the update alone, and {sorted(ctx.spec.aux)!r} would be summed beside it '
        'as an honest client sends it: use an algorithm that sends its update alone, or put '
        f'{name!r} before the codec that sums it.'
      )
    return ()

  facts: tuple[Fact, ...] = (Attacks(),)
  if attack.independent:
    why = 'what a hostile client sends has no bound'
    facts += (Bounds(lambda ctx, bound: Bound(rows=bound.rows), why),)
  return Layer(name, cohort=Stage(attack, init, facts))


def check_classes(name: str, y: Any) -> None:
  """Raises `ValueError` unless the labels of a batch are classes, which an attack replaces."""
  if y.dtype != jnp.int32:
    raise ValueError(f'{name} must be given labels that are classes, int32, got {y.dtype}.')
