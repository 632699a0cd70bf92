"""Oort: prefers clients with high losses and short durations, and explores some unseen clients.

A share e = max(least_explore, explore decay^round) of the cohort goes to clients that have never
taken part, drawn in proportion to 1 / duration. The others are drawn without replacement, in
proportion to utility, among the clients with at least 95% of the cut-off utility. The cut-off
utility is that of the last client if the clients with the highest utility were taken. The utility
of client i is

    |B_i| sqrt(mean of loss^2) + sqrt(0.1 log(round) / last round of i),

with its first term clipped at the 95% quantile, and multiplied by (T / t_i)^penalty if its duration
t_i is longer than T. The losses are those with the model that it received when it last took part.

Left out of the paper's method: the pacer (T is fixed), the removal of clients that were selected
too often, the fairness knob, noise on utilities, and measured durations (they are given). Inclusion
probabilities are unknown, so `chance` is 1.

Reference: Lai, Zhu, Madhyastha and Chowdhury (2021), arXiv 2010.06081, equation 2, Algorithm 1.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import (
  Context,
  Draws,
  Layer,
  Member,
  Metrics,
  Prepares,
  Stage,
  Task,
  Tree,
  tree,
  validate,
)
from fedjax_mem.stages.select import _base as draws
from fedjax_mem.stages.select import _losses as losses

_CUT_OFF = 0.95  # share of the cut-off utility that a client needs: c of Algorithm 1
_CLIPPED = 0.95  # quantile at which utilities are clipped, against outliers


class Utility(NamedTuple):
  """A client's row of the table.

  Attributes:
    value: float32, |B| sqrt(mean of loss^2) when it last took part.
    last: int32, number (from 1) of the round in which it last took part; 0: never.
  """

  value: jax.Array
  last: jax.Array


def oort(
  num_clients: int,
  cohort_size: int,
  loss: Callable[..., Any],
  explore: float = 0.9,
  decay: float = 0.98,
  least_explore: float = 0.2,
  durations: Sequence[float] | None = None,
  preferred_seconds: float | None = None,
  penalty: float = 2.0,
  batch_size: int = 64,
) -> Layer:
  """Returns the layer that selects clients by statistical and system utility.

  The docstring of the module defines the utility.

  >>> loss = fm.models.build('logistic', (4,), num_classes=3).loss
  >>> oort(100, 10, loss, durations=np.arange(1, 101)).fact(fm.Draws).scheme
  'data_dependent'

  Args:
    num_clients: N, clients of the population.
    cohort_size: C, clients a round, 1 <= C <= N.
    loss: (params, batch, key) -> [B] losses, one per example.
    explore: e in the first round, in [0, 1].
    decay: factor of e from round to round, in (0, 1].
    least_explore: lower limit on e, in [0, 1].
    durations: seconds that each client takes for a round [N], > 0; None: all equal.
    preferred_seconds: T, > 0; None: no client is slow.
    penalty: alpha, the exponent, >= 0.
    batch_size: examples at a time while losses are measured, >= 1.

  Raises:
    ValueError: an argument is out of range.
  """
  draws.check_cohort(num_clients, cohort_size)
  validate.function(loss=loss)
  validate.fraction(explore=explore)
  validate.probability(decay=decay)
  validate.fraction(least_explore=least_explore)
  validate.integer(batch_size=batch_size)
  seconds = draws.per_client(num_clients, durations=durations)
  system = _system(seconds, preferred_seconds, penalty)

  def draw(ctx: Context, _eligible: Any, state: Tree) -> tuple[Member, Tree, Metrics]:
    table: Utility = ctx.table
    seen = table.last > 0
    share = jnp.maximum(explore * decay ** ctx.round.astype(jnp.float32), least_explore)
    places = jnp.round(share * cohort_size).astype(jnp.int32)
    known = cohort_size - jnp.minimum(places, (~seen).sum(dtype=jnp.int32))
    use = jnp.where(seen, utilities(table, ctx.round) * system, -1.0)
    ids = _choose(ctx.key, use, -jnp.log(jnp.asarray(seconds)), known, cohort_size)
    cohort = draws.members(ids, jnp.ones(cohort_size, bool), 1.0, num_clients)
    return cohort, state, {'explored': (~seen[ids]).sum(dtype=jnp.int32)}

  law = Draws('data_dependent', num_clients, cohort_size, cohort_size)
  select = draws.drawing(draw, law, "others' data")
  return Layer('select', select=select, client=_measures(loss, batch_size))


def _measures(loss: Callable[..., Any], batch_size: int) -> Stage:
  """Returns the client side, which stores the client's utility and the number of the round."""

  def measure(ctx: Context, task: Task, row: Utility) -> tuple[Task, Utility, Metrics]:
    found = losses.measured(loss, task, batch_size)
    new = Utility(found.examples * jnp.sqrt(found.square), ctx.round + 1)
    return task, tree.select(found.examples > 0, new, row), {}

  return Stage(measure, lambda ctx: Utility(jnp.float32(0), jnp.int32(0)), (Prepares(),))


def _system(seconds: np.ndarray, preferred_seconds: float | None, penalty: float) -> np.ndarray:
  """Returns the factors [N] of the utilities of slow clients, 1 for the others."""
  validate.non_negative(penalty=penalty)
  if preferred_seconds is None:
    return np.ones_like(seconds)
  validate.positive(preferred_seconds=preferred_seconds)
  return np.minimum(np.float32(1), np.float32(preferred_seconds) / seconds) ** np.float32(penalty)


def utilities(table: Utility, round: jax.Array) -> jax.Array:
  """Returns statistical utility plus the bonus for a participation long ago, [N], of seen clients.

  Args:
    table: rows [N]; those of clients never seen give values without a meaning.
    round: int32, from 0.
  """
  seen, number = table.last > 0, table.value.shape[0]
  rising = jnp.sort(jnp.where(seen, table.value, jnp.inf))
  place = jnp.floor(_CLIPPED * (seen.sum().astype(jnp.float32) - 1)).astype(jnp.int32)
  most = rising[jnp.clip(place, 0, number - 1)]
  now = round.astype(jnp.float32) + 1
  bonus = jnp.sqrt(0.1 * jnp.log(now) / jnp.maximum(table.last, 1).astype(jnp.float32))
  return jnp.minimum(table.value, most) + bonus


def _choose(
  key: jax.Array, use: jax.Array, speed: jax.Array, known: jax.Array, size: int
) -> jax.Array:
  """Returns `size` ids: `known` of those with utility `use` [N] >= 0, then unseen ones (-1).

  Args:
    key: of the draw.
    use: [N] utilities, -1 for clients never seen.
    speed: [N], log of the proportions in which unseen clients are drawn.
    known: int32, number of clients to draw by utility.
    size: number of ids to return.
  """
  number = use.shape[0]
  noise = jax.random.gumbel(jax.random.fold_in(key, 0), (number,), jnp.float32)
  last = -jnp.sort(-use)[jnp.maximum(known - 1, 0)]
  good = (use >= 0) & (use >= _CUT_OFF * jnp.maximum(last, 0.0))
  # The largest of log utility + Gumbel noise: a draw in proportion to utility.
  score = jnp.where(good, jnp.log(jnp.maximum(use, 1e-30)) + noise, -jnp.inf)
  by_use = jnp.argsort(jnp.argsort(-score, stable=True), stable=True)
  first = good & (by_use < known)
  # Those drawn by utility, then unseen ones, then (if these are too few) the other seen ones.
  tier = jnp.where(first, 0, jnp.where(use < 0, 1, 2))
  order = jnp.where(use < 0, speed, 0.0) + noise
  ids = jnp.arange(number, dtype=jnp.int32)
  return jax.lax.sort((tier, -order, ids), num_keys=2)[2][:size]
