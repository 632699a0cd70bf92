"""What the samplers share: ordered draws without replacement, and cohorts made of ids."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Member, validate


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

  For small samples: ids are drawn with replacement and repeats are thrown away, in the order of the
  draws, until `size` distinct ones are there. That is a uniform draw without replacement in
  O(size log size), whatever the population (which ids repeat does not depend on their labels, so
  drawing anew after too many repeats keeps it uniform). For large samples: a random permutation.
  """
  if 4 * size > population:
    return jax.random.permutation(key, population)[:size].astype(jnp.int32)
  draws = size + size // 2 + 16  # of 4 * size ids or more: rarely too few distinct ones

  def attempt(number: jax.Array) -> tuple[jax.Array, jax.Array]:
    ids = jax.random.randint(jax.random.fold_in(key, number), (draws,), 0, population, jnp.int32)
    order = jnp.argsort(ids, stable=True)
    repeats = jnp.concatenate([jnp.zeros(1, bool), ids[order][1:] == ids[order][:-1]])
    first = jnp.zeros(draws, bool).at[order].set(~repeats)
    kept = jnp.nonzero(first, size=size, fill_value=draws)[0]
    return ids.at[kept].get(mode='clip'), first.sum() >= size

  def again(carry: tuple) -> tuple:
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
