"""Selection by contribution: clients whose updates improved the model on a validation split.

A client's score is the mean, over the rounds in which it took part, of its value in a game of the
cohort. In this game v(S) is minus the mean loss, on a validation split that the server holds, of
the model params - step x (sum of the messages of S) / (sum of their weights); v(empty set) is that
of the params as they are. The values are Shapley values, exact for cohorts of up to 8 and by
GTG-Shapley above ('shapley'), always by GTG-Shapley ('gtg'), or v(all) - v(all without i)
('leave_one_out').

Of the C places of a cohort, C - explore x C go to the clients with the highest scores. Clients
without a score come last, and ties are broken at random. The other explore x C places go to clients
drawn uniformly from the rest; if explore x C is not an integer, it is rounded at random with that
mean. The selection is biased on purpose: inclusion probabilities are unknown, so `chance` is 1 and
no weight is changed.

The server has to see each client's update, in a cohort side. It holds the cohort's messages [C, D],
the models of `subsets` subsets at a time, [subsets, D], and their activations for `batch_size`
examples. The plan refuses it with integer or masked messages, and under differential privacy. It
comes after the weighing. Subsets evaluated in a round: 2^C for exact values, C + 1 for
leave-one-out, at most 2 + sweeps x C x (C - 1) by permutations; and 2 more for the metric `gain`.

References: Liu et al. (2022), arXiv 2109.02053 (GTG-Shapley); Wang et al. (2020), arXiv
2009.06192, definition 2 (the game of one round).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import (
  Bounds,
  Context,
  Draws,
  IncompatibleStages,
  Layer,
  Member,
  Message,
  Metrics,
  Stage,
  Tree,
  Weighted,
  shapes,
  tree,
  validate,
)
from fedjax_mem.core.examples import in_batches
from fedjax_mem.stages.select import _base as draws
from fedjax_mem.stages.select import _shapley as shapley

_KEPT = Bounds(lambda ctx, bound: bound)  # messages are read and passed on unchanged
METHODS = ('shapley', 'gtg', 'leave_one_out')


class Score(NamedTuple):
  """A client's row of the table.

  Attributes:
    score: float32, mean of its values over the rounds in which it took part.
    rounds: int32, the number of those rounds.
  """

  score: jax.Array
  rounds: jax.Array


def contribution(
  num_clients: int,
  cohort_size: int,
  loss: Callable[..., Any],
  validation: dict[str, Any] | None = None,
  method: str = 'shapley',
  explore: float = 0.3,
  sweeps: int = 2,
  truncation: float = 1e-3,
  step: float = 1.0,
  subsets: int = 16,
  batch_size: int = 64,
) -> Layer:
  """Returns the layer that selects the clients of highest score, and some at random.

  The docstring of the module defines the score, and states its cost.

  >>> model = fm.models.build('logistic', (4,), num_classes=3)
  >>> held_out = {'x': np.zeros((6, 4), np.float32), 'y': np.arange(6) % 3}
  >>> layer = contribution(100, 10, model.loss, validation=held_out, method='gtg')
  >>> layer.fact(fm.Draws).scheme, layer.fact(fm.Looks).at
  ('data_dependent', "others' data")

  Args:
    num_clients: N, clients of the population.
    cohort_size: C, clients a round, 1 <= C <= N.
    loss: (params, batch, key) -> [B] losses, one per example.
    validation: name -> [V, ...], examples as the loss takes them, neither training nor test data.
    method: 'shapley', 'gtg' or 'leave_one_out'.
    explore: share of the cohort that is drawn uniformly, in [0, 1].
    sweeps: permutations led by each client, >= 1, for GTG-Shapley.
    truncation: difference of mean losses that is ignored, >= 0, for GTG-Shapley.
    step: learning rate of the server, > 0; any server optimizer is approximated by this plain step.
    subsets: subsets evaluated at a time, >= 1.
    batch_size: validation examples at a time, >= 1.

  Raises:
    ValueError: an argument is out of range, or there is no validation split.
  """
  draws.check_cohort(num_clients, cohort_size)
  validate.fraction(explore=explore)
  least = math.floor(explore * cohort_size + 1e-9)  # places to explore, and perhaps one more
  rest = explore * cohort_size - least
  game = Game(loss, validation, step, subsets, batch_size)
  judge = _Judge(game, cohort_size, method, sweeps, truncation)

  def draw(ctx: Context, _eligible: Any, state: Tree) -> tuple[Member, Tree, Metrics]:
    table: Score = ctx.table
    ids = _ids(ctx.key, table, cohort_size, least, rest)
    cohort = draws.members(ids, jnp.ones(cohort_size, bool), 1.0, num_clients)
    return cohort, state, {'unscored': (table.rounds == 0).sum(dtype=jnp.int32)}

  law = Draws('data_dependent', num_clients, cohort_size, cohort_size)
  return Layer(
    'select',
    select=draws.drawing(draw, law, "others' data"),
    cohort=Stage(judge, lambda ctx: Score(jnp.float32(0), jnp.int32(0)), (Weighted(), _KEPT)),
  )


def _ids(key: jax.Array, table: Score, size: int, least: int, rest: float) -> jax.Array:
  """Returns the ids [C] of a cohort: the highest scores first, then clients drawn uniformly.

  Args:
    key: of the draw.
    table: rows [N].
    size: C.
    least: places that are drawn uniformly; one more with probability `rest`.
    rest: in [0, 1).
  """
  number = table.score.shape[0]
  first, second, third = (jax.random.fold_in(key, i) for i in range(3))
  more = (jax.random.uniform(third, (), jnp.float32) < rest).astype(jnp.int32)
  score = jnp.where(table.rounds > 0, table.score, -jnp.inf)
  best = draws.highest(score, first, size)
  place, known = jnp.arange(size), size - least - more
  # Clients chosen by score are last in the uniform draw, so no client is in the cohort twice.
  gone = jnp.where(place < known, best, number)
  others = jnp.zeros(number).at[gone].set(-jnp.inf, mode='drop')
  drawn = draws.highest(others, second, size)
  return jnp.where(place < known, best, drawn[jnp.maximum(place - known, 0)])


def _batches(validation: Any, batch_size: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Returns the examples in batches, name -> [K, B, ...], and which of them are real, [K, B]."""
  # A configuration may hold no validation split: the error names the key to set.
  if not isinstance(validation, dict) or not validation or not len(next(iter(validation.values()))):
    raise ValueError(
      'validation must be at least one example that is neither training nor test, got '
      f'{validation!r}: in a configuration, set data.validation to a share of the training '
      'examples, such as 0.1.'
    )
  return in_batches(validation, batch_size)


class Game:
  """The game of one round: the value v(S) of every subset S of the cohort."""

  def __init__(
    self, loss: Callable[..., Any], validation: Any, step: float, subsets: int, batch_size: int
  ):
    """Raises `ValueError` for what is out of range; the arguments are those of `contribution`."""
    self._loss = validate.function(loss=loss)
    self._step = validate.positive(step=step)
    self._subsets = validate.integer(subsets=subsets)
    validate.integer(batch_size=batch_size)
    self._held = _batches(validation, batch_size)

  def value(self, params: Tree, stack: Message) -> shapley.Value:
    """Returns masks [S, C] -> minus the mean validation losses [S] of the subsets' models."""
    total = float(self._held[1].sum())

    def one(mask: jax.Array) -> jax.Array:
      on = mask.astype(jnp.float32)
      # The updates of the empty set add up to zeros, so any divisor gives the params.
      by = self._step / jnp.maximum((on * stack.weight).sum(), 1e-30)
      move = lambda p, x: p - (by * jnp.tensordot(on, x.astype(jnp.float32), 1)).astype(p.dtype)
      model = jax.tree.map(move, params, stack.update)

      def part(carry: jax.Array, row: tuple[dict[str, Any], Any]) -> tuple[jax.Array, None]:
        batch, real = row
        return carry + jnp.where(real, self._loss(model, batch, None), 0.0).sum(), None

      summed: jax.Array = jax.lax.scan(part, jnp.float32(0), self._held)[0]
      return -summed / total

    return lambda masks: jax.lax.map(one, masks, batch_size=min(self._subsets, masks.shape[0]))


class _Judge:
  """The cohort side: updates the scores of the cohort's clients, and changes no message."""

  def __init__(self, game: Game, cohort_size: int, method: str, sweeps: int, truncation: float):
    """Raises `ValueError` for what is out of range; the arguments are those of `contribution`."""
    self._game, self._size = game, cohort_size
    self._method = validate.one_of(METHODS, method=method)
    self._sweeps = validate.integer(sweeps=sweeps)
    self._truncation = validate.non_negative(truncation=truncation)

  def _values(self, value: shapley.Value, key: jax.Array) -> tuple[jax.Array, Any]:
    """Returns (values [C] of the clients, subsets that were evaluated)."""
    size = self._size
    if self._method == 'shapley' and size <= shapley.EXACT_AT_MOST:
      return shapley.exact(value, size), jnp.int32(2**size)
    if self._method == 'leave_one_out':
      return shapley.leave_one_out(value, size), jnp.int32(size + 1)
    return shapley.gtg(value, size, key, self._sweeps, self._truncation)

  def __call__(self, ctx: Context, stack: Message, rows: Score) -> tuple[Message, Score, Metrics]:
    """Returns (stack, state, metrics), as every side of a layer."""
    if not shapes.same(jax.tree.map(lambda x: x[0], stack.update), ctx.params):
      raise IncompatibleStages(
        "'select' (contribution) builds models from updates, and the algorithm sends something "
        'else beside them: use one that sends its update alone, such as fedavg.'
      )
    size, on = self._size, ctx.cohort.arrived & (stack.weight > 0)
    # The engine pads cohorts: at most `cohort_size` of its rows are on, and they are sorted first.
    chosen = jnp.argsort(~on, stable=True)[:size]
    few = jax.tree.map(lambda x: x[chosen], tree.keep(on, stack))
    value = self._game.value(ctx.params, few)
    ends = value(jnp.stack([jnp.zeros(size, bool), jnp.ones(size, bool)]))
    found, evaluations = self._values(value, ctx.key)
    each = jnp.zeros(on.shape).at[chosen].set(found)
    rounds = rows.rounds + 1
    new = Score(rows.score + (each - rows.score) / rounds.astype(jnp.float32), rounds)
    metrics = {
      'gain': ends[1] - ends[0],
      'highest': jnp.where(on, each, -jnp.inf).max(),
      'lowest': jnp.where(on, each, jnp.inf).min(),
      'subsets': evaluations + 2,  # two for the gain
    }
    return stack, tree.select(on, new, rows), metrics
