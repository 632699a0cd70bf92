"""Importance sampling: clients that change the model more take part more often, and count less.

Each client takes part independently with its own inclusion probability (Poisson sampling), at most
once in a round. It is p_i = min(1, c s_i), with c such that the p_i add up to `cohort_size`, and
s_i = (1 - explore) u_i / sum u + explore / N, where u_i is the client's last norm or loss. For a
client that has not taken part yet, u_i is its number of examples times the mean of u per example of
the clients that have. So no p_i is below min(1, explore cohort_size / N). The p_i are rounded up to
multiples of 2^-23, the probabilities that a draw in float32 realises exactly. Every message is
multiplied by 1 / p_i.

The divisor of the weighing decides what is averaged. With a fixed divisor, the weight of the whole
population (all examples under 'examples', N under 'equal'), the step is the Horvitz-Thompson
estimator. It is unbiased for the step in which all clients take part, whatever the scores. Without
a fixed divisor the sum is divided by the sum of the weights that arrived. This is the
self-normalised (Hajek) mean, of less variance and biased, less so with larger cohorts. The p_i do
not include drop-out: clients that are lost regardless of their updates scale the fixed-divisor step
down, and do not scale the self-normalised mean.

With `by='norm'` the layer comes after the weighing, so the norms are those of weighted updates.
`by='loss'` measures the losses with the model that the client received, by one more pass over its
examples. The server learns each client's norm or loss, which privacy and masks do not cover.

References: Horvitz and Thompson (1952); Chen, Horvath and Richtarik (2020), arXiv 2010.13723,
equation 7 (the probabilities of least variance; there from the norms of this round, here from a
client's last norm).
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
  Member,
  Message,
  Metrics,
  Prepares,
  Rescales,
  Stage,
  Task,
  Tree,
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
  """Returns the layers that select clients in proportion to their last weighted norm or loss.

  The docstring of the module defines the probabilities. By norm it is one layer, after the
  weighing; by loss there are two, one before the algorithm and one after the weighing.

  >>> loss = fm.models.build('logistic', (4,), num_classes=3).loss
  >>> [layer.name for layer in importance(100, 10, by='loss', loss=loss)]
  ['select', 'inverse_chance']

  Args:
    num_clients: N, clients of the population.
    cohort_size: clients expected in a round, 1 <= cohort_size <= N.
    explore: share of the probability that is spread evenly, in (0, 1].
    by: 'norm' or 'loss'.
    loss: (params, batch, key) -> [B] losses, one per example; needed for 'loss'.
    sizes: examples of each client [N], for clients that have not taken part yet; None: all equal.
    capacity: rows of a cohort; None: the smallest number which a cohort exceeds with a probability
      of at most 1e-9. A larger cohort is cut to a uniform subset (metric: `overflow`).
    batch_size: examples at a time while losses are measured, >= 1.

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

  def draw(ctx: Context, eligible: Any, state: Tree) -> tuple[Member, Tree, Metrics]:
    del eligible
    chance = inclusion(scores(ctx.table, prior), cohort_size, explore)
    cohort, metrics = _drawn(ctx.key, chance, capacity)
    return cohort, state, metrics

  law = Draws('data_dependent', num_clients, cohort_size, capacity)
  select = draws.drawing(draw, law, "others' data")
  if by == 'norm':
    return (Layer('select', select=select, client=Stage(_norms, _first, _RESCALES)),)
  chooser = Layer('select', select=select, client=_measures(loss, batch_size))
  return chooser, Layer('inverse_chance', client=Stage(_inverse, facts=_RESCALES))


def _drawn(key: jax.Array, chance: jax.Array, capacity: int) -> tuple[Member, Metrics]:
  """Returns (a Poisson cohort of the inclusion probabilities [N], cut to the capacity; metrics)."""
  chance = jnp.ceil(chance * _STEPS) / _STEPS
  taken = jax.random.uniform(jax.random.fold_in(key, 0), chance.shape, jnp.float32) < chance
  # The highest of 1 and 0 are those taken; ties are in random order, so a cut is uniform.
  ids = draws.highest(taken.astype(jnp.float32), jax.random.fold_in(key, 1), capacity)
  cohort = draws.members(ids, taken[ids], chance[ids], len(chance))
  over = (taken.sum(dtype=jnp.int32) > capacity).astype(jnp.int32)
  return cohort, {'overflow': over, 'least_chance': chance.min()}


def _first(ctx: Context) -> Seen:
  """Returns the first row of a client."""
  del ctx
  return Seen(jnp.float32(0), jnp.bool_(False))


def _measures(loss: Any, batch_size: int) -> Stage:
  """Returns the client side, before the algorithm, which stores examples x mean loss."""

  def measure(ctx: Context, task: Task, row: Seen) -> tuple[Task, Seen, Metrics]:
    found = losses.measured(loss, task, batch_size)
    new = Seen(found.examples * found.mean, jnp.bool_(True))
    return task, tree.select(found.examples > 0, new, row), {}

  return Stage(measure, _first, (Prepares(),))


# A message divided by a small inclusion probability has no bound.
_LARGER = Bounds(lambda ctx, bound: Bound(), 'it divides by the chance of a client')
_RESCALES = (Weighted(), Rescales(), _LARGER)


def _norms(ctx: Context, message: Message, row: Seen) -> tuple[Message, Seen, Metrics]:
  """Multiplies the message by 1 / chance, and stores the norm that it had before."""
  new = Seen(tree.norm(message.update), jnp.bool_(True))
  scaled, _, _ = _inverse(ctx, message, ())
  return scaled, tree.select(message.weight > 0, new, row), {}


def _inverse(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
  """Multiplies update, weight and aux of the message by 1 / chance."""
  return tree.scale(1 / ctx.client.chance, message), state, {}


def scores(table: Seen, prior: Any) -> jax.Array:
  """Returns the last value of each client, [N]; for unseen ones, prior x the mean rate of the seen.

  Args:
    table: rows [N].
    prior: [N], > 0, such as numbers of examples.
  """
  prior = jnp.asarray(prior)
  known = jnp.where(table.seen, table.value, 0.0).sum()
  per = jnp.where(table.seen, prior, 0.0).sum()
  rate = jnp.where(known > 0, known / jnp.maximum(per, 1e-30), 1.0)
  return jnp.where(table.seen, table.value, rate * prior)


def inclusion(score: jax.Array, expected: float, explore: float) -> jax.Array:
  """Returns the probabilities min(1, c s) that add up to `expected`, [N], all > 0.

  Args:
    score: [N], >= 0.
    expected: expected number of clients in a cohort, in (0, N].
    explore: share of s that is spread evenly, in (0, 1].
  """
  number, total = score.shape[0], score.sum()
  share = jnp.where(total > 0, score / jnp.maximum(total, 1e-30), 1 / number)
  share = (1 - explore) * share + explore / number
  down = -jnp.sort(-share)
  rest = jnp.cumsum(down[::-1])[::-1]  # sum of all but the k largest
  left = expected - jnp.arange(number, dtype=jnp.float32)  # sum of their p, if k have p = 1
  # The smallest k that leaves no other probability above 1; it exists, as expected <= N.
  certain = jnp.argmax(left * down <= rest * (1 + 1e-6))
  scale = jnp.maximum(left[certain], 0.0) / rest[certain]
  rank = jnp.argsort(jnp.argsort(-share, stable=True), stable=True)
  return jnp.where(rank < certain, 1.0, jnp.minimum(scale * share, 1.0))
