"""Oort: clients whose examples are hard and who answer soon, and some that nobody knows yet.

A share e = max(least_explore, explore decay^round) of the cohort goes to clients never seen, in
proportion to 1 / duration. The others are drawn without replacement, in proportion to utility, of
those with at least 95% of the utility of the last that would be taken. The utility of client i,

    |B_i| sqrt(mean of loss^2) + sqrt(0.1 log(round) / last round of i),

its first part clipped at the 95% quantile, is multiplied by (T / t_i)^penalty if it is slower
than T. The losses are those at the model that it got when it last took part.

Left out of the paper's method: the pacer (T is fixed), the removal of clients that were taken too
often, the fairness knob, noise on utilities, and measured durations (they are given). `chance` is
not known and stands at 1.

Reference: Lai, Zhu, Madhyastha and Chowdhury (2021), arXiv 2010.06081, equation 2, Algorithm 1.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Context, Draws, Layer, Prepares, Stage, Task, tree, validate
from fedjax_mem.stages.select import _base as draws
from fedjax_mem.stages.select import _losses as losses

_CUT_OFF = 0.95  # of the utility of the last client that would be taken: c of Algorithm 1
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

  Args:
    num_clients: N, clients of the population.
    cohort_size: C, clients a round, 1 <= C <= N.
    loss: (params, batch, key) -> [B] losses, one an example.
    explore: e of the first round, in [0, 1].
    decay: factor of e from round to round, in (0, 1].
    least_explore: e at the least, in [0, 1].
    durations: seconds that each client takes for a round [N]; None: all alike.
    preferred_seconds: T, > 0; None: no client is slow.
    penalty: alpha, >= 0.
    batch_size: examples at a time while losses are measured.

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

  def draw(ctx: Context, _eligible, state):
    table: Utility = ctx.table
    seen = table.last > 0
    share = jnp.maximum(explore * decay ** ctx.round.astype(jnp.float32), least_explore)
    places = jnp.round(share * cohort_size).astype(jnp.int32)
    known = cohort_size - jnp.minimum(places, (~seen).sum(dtype=jnp.int32))
    use = jnp.where(seen, utilities(table, ctx.round) * system, -1.0)
    ids = _choose(ctx.key, use, -jnp.log(jnp.asarray(seconds)), known, cohort_size)
    cohort = draws.members(ids, jnp.ones(cohort_size, bool), 1.0, num_clients)
    return cohort, state, {'explored': (~seen[ids]).sum(dtype=jnp.int32)}

  def measure(ctx: Context, task: Task, row: Utility):
    found = losses.measured(loss, task, batch_size)
    new = Utility(found.examples * jnp.sqrt(found.square), ctx.round + 1)
    return task, tree.select(found.examples > 0, new, row), {}

  law = Draws('data_dependent', num_clients, cohort_size, cohort_size)
  return Layer(
    'select',
    select=draws.drawing(draw, law, "others' data"),
    client=Stage(measure, lambda ctx: Utility(jnp.float32(0), jnp.int32(0)), (Prepares(),)),
  )


def _system(seconds: np.ndarray, preferred_seconds: float | None, penalty: float) -> np.ndarray:
  """Returns the factors [N] of the utilities of slow clients, 1 for the others."""
  validate.non_negative(penalty=penalty)
  if preferred_seconds is None:
    return np.ones_like(seconds)
  validate.positive(preferred_seconds=preferred_seconds)
  return np.minimum(np.float32(1), np.float32(preferred_seconds) / seconds) ** np.float32(penalty)


def utilities(table: Utility, round: jax.Array) -> jax.Array:
  """Returns the statistical utilities with the bonus of those long not seen, [N]; for those seen.

  Args:
    table: rows [N].
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
    known: int32, how many are to be drawn by utility.
    size: ids to return.
  """
  number = use.shape[0]
  noise = jax.random.gumbel(jax.random.fold_in(key, 0), (number,))
  last = -jnp.sort(-use)[jnp.maximum(known - 1, 0)]
  good = (use >= 0) & (use >= _CUT_OFF * jnp.maximum(last, 0.0))
  rank = lambda score: jnp.argsort(jnp.argsort(-score, stable=True), stable=True)
  by_use = rank(jnp.where(good, jnp.log(jnp.maximum(use, 1e-30)) + noise, -jnp.inf))
  first = good & (by_use < known)
  tier = jnp.where(first, 0, jnp.where(use < 0, 1, 2))
  order = jnp.where(use < 0, speed, 0.0) + noise
  ids = jnp.arange(number, dtype=jnp.int32)
  return jax.lax.sort((tier, -order, ids), num_keys=2)[2][:size]
