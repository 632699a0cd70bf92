"""What select sides share: the stage that draws, layers that leave clients out, ordered draws."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import (
  Context,
  Draw,
  Draws,
  IncompatibleStages,
  Layer,
  Looks,
  Member,
  Metrics,
  Stage,
  Tree,
  validate,
)

Carry = tuple[jax.Array, jax.Array, jax.Array]
# (ctx, eligible clients [N] or None for all, own state) -> (cohort, own state, metrics)
Drawing = Callable[[Context, Any, Tree], tuple[Member, Tree, Metrics]]
# (ctx, cohort, own state) -> (which clients stay [C], own state, metrics)
Staying = Callable[[Context, Member, Tree], tuple[jax.Array, Tree, Metrics]]


def drawing(
  draw: Drawing,
  law: Draws,
  looks: str = 'nothing',
  init: Callable[[Context], Tree] | None = None,
  among: bool = False,
) -> Stage:
  """Returns the select side that draws the cohort.

  Args:
    draw: draws the cohort.
    law: the law of that draw, as plain data.
    looks: what the draw depends on, as in `Looks`.
    init: initialises its state.
    among: whether it can draw from a part of the population; if not, a layer that leaves clients
      out is refused before it.
  """

  def apply(ctx: Context, given: Draw, state: Tree) -> tuple[Draw, Tree, Metrics]:
    if given.cohort is not None:
      raise IncompatibleStages('a cohort must be drawn once, got a draw after another.')
    if given.eligible is not None and not among:
      raise IncompatibleStages(
        f'the draw {law.scheme!r} is from all clients, and a layer before it leaves some out: put '
        'it after the draw, or draw by uniform or poisson.'
      )
    cohort, state, metrics = draw(ctx, given.eligible, state)
    return given._replace(cohort=cohort), state, metrics

  return Stage(apply, init, (law, Looks(looks)))


def filtering(
  name: str,
  stays: Staying,
  *,
  before_work: bool,
  num_clients: int | None = None,
  before_draw: bool = False,
  looks: str = 'nothing',
  public: str = '',
  init: Callable[[Context], Tree] | None = None,
) -> Layer:
  """Returns the layer that leaves clients out, either of the cohort or of the eligible clients.

  Args:
    name: of the layer.
    stays: decides which clients stay.
    before_work: in a cohort: whether clients are removed before they do any work; if not, they do
      their work and their message is lost.
    num_clients: N; needed for `before_work` and `before_draw`.
    before_draw: leave clients out of those that may be drawn. In a cohort of fixed size the
      inclusion probability of the others then grows, from C / N to C / E with E eligible clients.
    looks: what the decision depends on, as in `Looks`.
    public: what it takes as public, as in `Looks`.
    init: initialises its state.

  Raises:
    ValueError: N is needed and not given.
  """
  number: Any = num_clients
  if before_work or before_draw:
    validate.integer(num_clients=num_clients)

  def everyone() -> Member:
    on = jnp.ones(number, bool)
    return Member(jnp.arange(number, dtype=jnp.int32), on, on, jnp.ones(number))

  def apply(ctx: Context, draw: Draw, state: Tree) -> tuple[Draw, Tree, Metrics]:
    if before_draw != (draw.cohort is None):
      place = 'before' if before_draw else 'after'
      raise IncompatibleStages(f'{name!r} must come {place} the layer that draws the cohort.')
    here, state, metrics = stays(ctx, everyone() if before_draw else draw.cohort, state)
    if before_draw:
      return Draw(here if draw.eligible is None else draw.eligible & here), state, metrics
    cohort = draw.cohort._replace(arrived=draw.cohort.arrived & here)
    if before_work:
      real = cohort.real & here
      ids = jnp.where(real, cohort.id, number)
      cohort = Member(ids, real, cohort.arrived, jnp.where(real, cohort.chance, 1.0))
    return draw._replace(cohort=cohort), state, metrics

  return Layer(name, select=Stage(apply, init, (Looks(looks, public),)))


def each(key: jax.Array, draw: Callable[..., jax.Array], ids: jax.Array) -> jax.Array:
  """Returns a float32 number for each of the ids [C], independent of the other clients.

  Args:
    key: parent of the clients' keys.
    draw: (key, shape, dtype) -> numbers, such as `jax.random.uniform`.
    ids: [C].
  """
  return jax.vmap(lambda id: draw(jax.random.fold_in(key, id), (), jnp.float32))(ids)


def check_cohort(num_clients: int, cohort_size: int) -> None:
  """Raises `ValueError` unless 1 <= cohort_size <= num_clients."""
  validate.integer(num_clients=num_clients)
  validate.integer(cohort_size=cohort_size)
  if cohort_size > num_clients:
    raise ValueError(
      f'cohort_size must be at most the number of clients ({num_clients}), got {cohort_size!r}.'
    )


def per_client(num_clients: int, **named: Any) -> np.ndarray:
  """Returns the value, N finite numbers > 0, as float32 [N] (ones for None), or raises."""
  ((name, value),) = named.items()
  if value is None:
    return np.ones(num_clients, np.float32)
  try:
    array = np.asarray(value, np.float32)
  except (TypeError, ValueError):
    array = np.zeros(0, np.float32)
  if array.shape != (num_clients,) or not (np.isfinite(array) & (array > 0)).all():
    raise ValueError(
      f'{name} must be {num_clients} finite numbers > 0, one a client, got {value!r}.'
    )
  return array


def highest(score: jax.Array, key: jax.Array, size: int) -> jax.Array:
  """Returns the ids of the `size` largest of the scores [N], ties in random order, [size] int32."""
  bits = jax.random.bits(key, score.shape, jnp.uint32)
  ids = jnp.arange(score.shape[0], dtype=jnp.int32)
  return jax.lax.sort((-score, bits, ids), num_keys=2)[2][:size]


def ordered_sample(key: jax.Array, population: int, size: int) -> jax.Array:
  """Returns `size` distinct ids of 0 … population - 1 in uniformly random order, [size] int32.

  Small samples: ids are drawn with replacement, and repeats are discarded in the order of the
  draws. If fewer than `size` distinct ids remain, all are drawn again. The result is a uniform draw
  without replacement, in O(size log size) for any population: how many ids are distinct does not
  depend on which ids they are, so drawing again keeps it uniform. Large samples: a random
  permutation.
  """
  if 4 * size > population:
    return jax.random.permutation(key, population)[:size].astype(jnp.int32)
  draws = size + size // 2 + 16  # from 4 * size ids or more: rarely too few distinct ones

  def attempt(number: jax.Array) -> tuple[jax.Array, jax.Array]:
    ids = jax.random.randint(jax.random.fold_in(key, number), (draws,), 0, population, jnp.int32)
    turns = jnp.arange(draws, dtype=jnp.int32)
    ids, turns = jax.lax.sort((ids, turns), num_keys=2)
    repeats = jnp.pad(ids[1:] == ids[:-1], (1, 0))
    turns, ids = jax.lax.sort((jnp.where(repeats, draws, turns), ids), num_keys=1)
    return ids[:size], turns[size - 1] < draws

  def again(carry: Carry) -> Carry:
    number, _, _ = carry
    return (number + 1, *attempt(number))

  start = (jnp.int32(0), jnp.zeros(size, jnp.int32), jnp.bool_(False))
  return jax.lax.while_loop(lambda carry: ~carry[2], again, start)[1]


def members(
  ids: jax.Array, real: jax.Array, chance: jax.typing.ArrayLike, population: int
) -> Member:
  """Returns the cohort of `ids` [C] where `real` [C]; the other rows are padding."""
  ids = jnp.where(real, ids, population).astype(jnp.int32)
  chance = jnp.broadcast_to(jnp.asarray(chance, jnp.float32), ids.shape)
  return Member(ids, real, real, jnp.where(real, chance, jnp.float32(1)))
