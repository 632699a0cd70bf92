"""Power of choice: draws candidates, and selects those with the highest loss.

Candidates are drawn without replacement, one after another, in proportion to their numbers of
examples. The `cohort_size` candidates with the highest loss take part. Clients that have never
taken part come first, and ties are broken at random. The loss is that of the model which the client
received when it last took part (one more pass over its examples), not this round's. So clients
outside the cohort neither compute nor send anything. This is the paper's communication-saving
variant, rpow-d, with one difference: there the loss is the average over the local steps.

The method is biased on purpose: inclusion probabilities are unknown, so `chance` is 1 and no weight
is changed.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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


class LastLoss(NamedTuple):
  """A client's row of the table.

  Attributes:
    loss: float32, mean over its examples when it last took part.
    seen: whether it has taken part yet.
  """

  loss: jax.Array
  seen: jax.Array


def power_of_choice(
  num_clients: int,
  cohort_size: int,
  loss: Callable[..., Any],
  candidates: int | None = None,
  sizes: Sequence[float] | None = None,
  batch_size: int = 64,
) -> Layer:
  """Returns the layer that selects, of `candidates` drawn by size, those of highest loss.

  >>> model = fm.models.build('logistic', (4,), num_classes=3)
  >>> layer = power_of_choice(100, 10, model.loss, candidates=30)
  >>> layer.fact(fm.Draws).scheme, layer.fact(fm.Looks).at
  ('data_dependent', "others' data")

  Reference: Cho, Wang and Joshi (2020), arXiv 2010.01243, section 3 (pow-d, rpow-d).

  Args:
    num_clients: N, clients of the population.
    cohort_size: C, clients a round, 1 <= C <= N.
    loss: (params, batch, key) -> [B] losses, one per example.
    candidates: d, C <= d <= N; None: 2 C, or N if that is less. d = C is sampling by size.
    sizes: examples of each client [N]; None: all equal.
    batch_size: examples at a time while losses are measured, >= 1.

  Raises:
    ValueError: an argument is out of range.
  """
  draws.check_cohort(num_clients, cohort_size)
  validate.function(loss=loss)
  validate.integer(batch_size=batch_size)
  if candidates is None:
    candidates = min(2 * cohort_size, num_clients)
  validate.integer(cohort_size, num_clients, candidates=candidates)
  share = draws.per_client(num_clients, sizes=sizes)

  def draw(ctx: Context, eligible: Any, state: Tree) -> tuple[Member, Tree, Metrics]:
    del eligible
    table: LastLoss = ctx.table
    keys = [jax.random.fold_in(ctx.key, i) for i in range(3)]
    # The largest of log p + Gumbel noise, in order: draws one after another, in proportion to p.
    noisy = jnp.log(jnp.float32(share)) + jax.random.gumbel(keys[0], (num_clients,), jnp.float32)
    asked = draws.highest(noisy, keys[1], candidates)
    last = jnp.where(table.seen, table.loss, jnp.inf)[asked]
    ids = asked[draws.highest(last, keys[2], cohort_size)]
    cohort = draws.members(ids, jnp.ones(cohort_size, bool), 1.0, num_clients)
    return cohort, state, {'unseen': (~table.seen).sum(dtype=jnp.int32)}

  def measure(ctx: Context, task: Task, row: LastLoss) -> tuple[Task, LastLoss, Metrics]:
    del ctx
    found = losses.measured(loss, task, batch_size)
    new = LastLoss(found.mean, jnp.bool_(True))
    return task, tree.select(found.examples > 0, new, row), {}

  law = Draws('data_dependent', num_clients, cohort_size, cohort_size)
  return Layer(
    'select',
    select=draws.drawing(draw, law, "others' data"),
    client=Stage(measure, lambda ctx: LastLoss(jnp.float32(0), jnp.bool_(False)), (Prepares(),)),
  )
