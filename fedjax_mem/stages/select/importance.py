"""Importance sampling: clients that change the model more take part more often, and count less.

Each client takes part independently with its own probability (Poisson sampling), so none twice:
p_i = min(1, c s_i), with c such that the p_i add up to `cohort_size`, where
s_i = (1 - explore) u_i / sum u + explore / N and u_i is what was last seen of the client. One
that was not seen yet stands at the mean over those that were, in proportion to its size. So no
p_i is below min(1, explore cohort_size / N). They are rounded up to multiples of 2^-23, which are
the probabilities with which a float32 draw falls below them. Every arriving message is multiplied
by 1 / p_i.

What is averaged depends on the divisor of the weighing. With a fixed one, the weight of the whole
population (all examples under 'examples', N under 'equal'), the step is the Horvitz-Thompson
estimator: unbiased for the step in which all clients take part, whatever the scores. Without one
the sum is divided by the sum of the weights that arrived: the self-normalised (Hajek) mean, of
less variance and biased, less so with larger cohorts. Drop-out is not in p_i: clients that are
lost regardless of their updates scale the fixed-divisor step down, and leave the other as it is.

With `by='norm'` the layer comes after the weighing, so that what it sees is weighted.
`by='loss'` measures the losses at the model that the client got, one more pass over its examples.
The server is told each client's norm or loss, so privacy and masks do not cover it.

References: Horvitz and Thompson (1952); Chen, Horvath and Richtarik (2020), arXiv 2010.13723,
equation 7 (the probabilities of least variance, there from this round's norms, here the last).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_mem.core import (
  Bound,
  Bounds,
  Context,
  Draws,
  Layer,
  Message,
  Prepares,
  Stage,
  Task,
  Weighted,
  tree,
  validate,
)
from fedjax_mem.kernels.random import laws
from fedjax_mem.stages.select import _base as draws
from fedjax_mem.stages.select import _losses as losses

_STEPS = 2**23  # values that `jax.random.uniform` takes in float32


class Seen(NamedTuple):
  """A client's row of the table.

  Attributes:
    value: float32, weight x norm of its last update, or examples x its last loss.
    seen: whether it has taken part yet.
  """

  value: jax.Array
  seen: jax.Array


def importance(
  num_clients: int,
  cohort_size: int,
  explore: float = 0.1,
  by: str = 'norm',
  loss: Callable[..., Any] | None = None,
  sizes: Sequence[float] | None = None,
  capacity: int | None = None,
  batch_size: int = 64,
) -> tuple[Layer, ...]:
  """Returns the layers that select clients in proportion to size x their last norm or loss.

  Args:
    num_clients: N, clients of the population.
    cohort_size: clients expected in a round, 1 <= cohort_size <= N.
    explore: share of the probability that is spread evenly, in (0, 1].
    by: 'norm' or 'loss'.
    loss: (params, batch, key) -> [B] losses; for 'loss'.
    sizes: examples of each client [N], for those not seen yet; None: all alike.
    capacity: rows of a cohort; by default the least for which a cohort overflows with a probability
      of at most 1e-9. A larger cohort is cut uniformly, and reported as `overflow`.
    batch_size: examples at a time while losses are measured.

  Raises:
    ValueError: an argument is out of range, or `loss` is missing.
  """
  draws.check_cohort(num_clients, cohort_size)
  validate.probability(explore=explore)
  validate.one_of(('norm', 'loss'), by=by)
  validate.integer(batch_size=batch_size)
  if loss is not None or by == 'loss':
    validate.function(loss=loss)
  prior = draws.per_client(num_clients, sizes=sizes)
  if capacity is None:
    capacity = max(cohort_size, laws.binomial_capacity(num_clients, cohort_size / num_clients))
  validate.integer(at_most=num_clients, capacity=capacity)

  def draw(ctx: Context, eligible, state):
    del eligible
    table: Seen = ctx.table
    chance = inclusion(scores(table, prior), cohort_size, explore)
    chance = jnp.ceil(chance * _STEPS) / _STEPS
    taken = jax.random.uniform(jax.random.fold_in(ctx.key, 0), (num_clients,)) < chance
    # Highest of 1 and 0: those taken, in random order, so that a cut is a uniform one.
    ids = draws.highest(taken.astype(jnp.float32), jax.random.fold_in(ctx.key, 1), capacity)
    cohort = draws.members(ids, taken[ids], chance[ids], num_clients)
    over = (taken.sum(dtype=jnp.int32) > capacity).astype(jnp.int32)
    return cohort, state, {'overflow': over, 'least_chance': chance.min()}

  def measure(ctx: Context, task: Task, row: Seen):
    found = losses.measured(loss, task, batch_size)
    new = Seen(found.examples * found.mean, jnp.bool_(True))
    return task, tree.select(found.examples > 0, new, row), {}

  first = lambda ctx: Seen(jnp.float32(0), jnp.bool_(False))
  law = Draws('data_dependent', num_clients, cohort_size, capacity)
  select = draws.drawing(draw, law, "others' data")
  if by == 'norm':
    return (Layer('select', select=select, client=Stage(_norms, first, (Weighted(), _LARGER))),)
  chooser = Layer('select', select=select, client=Stage(measure, first, (Prepares(),)))
  return chooser, Layer('inverse_chance', client=Stage(_inverse, facts=(Weighted(), _LARGER)))


# What a client of a small chance sends has no bound.
_LARGER = Bounds(lambda ctx, bound: Bound(), 'it divides by the chance of a client')


def _norms(ctx: Context, message: Message, row: Seen):
  """Multiplies the message by 1 / chance, and remembers its norm before."""
  new = Seen(tree.norm(message.update), jnp.bool_(True))
  scaled, _, _ = _inverse(ctx, message, ())
  return scaled, tree.select(message.weight > 0, new, row), {}


def _inverse(ctx: Context, message: Message, state):
  """Multiplies everything of the message by 1 / chance."""
  return tree.scale(1 / ctx.client.chance, message), state, {}


def scores(table: Seen, prior: Any) -> jax.Array:
  """Returns what was last seen of each client, or the mean of the others x its prior, [N]."""
  prior = jnp.asarray(prior)
  known = jnp.where(table.seen, table.value, 0.0).sum()
  per = jnp.where(table.seen, prior, 0.0).sum()
  rate = jnp.where(known > 0, known / jnp.maximum(per, 1e-30), 1.0)
  return jnp.where(table.seen, table.value, rate * prior)


def inclusion(score: jax.Array, expected: float, explore: float) -> jax.Array:
  """Returns the probabilities min(1, c s) that add up to `expected`, [N], all > 0.

  Args:
    score: [N], >= 0.
    expected: in (0, N].
    explore: share of s that is spread evenly, in (0, 1].
  """
  number, total = score.shape[0], score.sum()
  share = jnp.where(total > 0, score / jnp.maximum(total, 1e-30), 1 / number)
  share = (1 - explore) * share + explore / number
  down = -jnp.sort(-share)
  rest = jnp.cumsum(down[::-1])[::-1]  # of those from the k-th largest on
  left = expected - jnp.arange(number, dtype=jnp.float32)  # for them, if k are certain
  # The least number of certain ones that leaves no other above 1; there is one, as expected <= N.
  certain = jnp.argmax(left * down <= rest * (1 + 1e-6))
  scale = jnp.maximum(left[certain], 0.0) / rest[certain]
  rank = jnp.argsort(jnp.argsort(-share, stable=True), stable=True)
  return jnp.where(rank < certain, 1.0, jnp.minimum(scale * share, 1.0))
