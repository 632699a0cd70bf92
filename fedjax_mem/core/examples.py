"""The examples of a population on the device, and one client's view of them."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import groups

Batch = dict[str, jax.Array]
Transform = Callable[[Batch], Batch]


class Rows(NamedTuple):
  """A batch of one client's examples.

  Attributes:
    batch: arrays [B, ...].
    mask: [B] booleans: true for an example, false for padding.
    positions: [B] int32, positions among the client's examples.
    number: int32 scalar, the number of the batch, from 0.
  """

  batch: Batch
  mask: jax.Array
  positions: jax.Array
  number: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Population:
  """All examples of all clients, flat, in their stored dtypes.

  Attributes:
    arrays: name -> [T, ...], examples of all clients (uint8 for images).
    index: [M] int32, rows of `arrays`, client after client; a row may belong to several clients.
    start: [N] int32, where a client's part of `index` begins.
    count: [N] int32, examples of a client.
  """

  arrays: Batch
  index: jax.Array
  start: jax.Array
  count: jax.Array


class Shape(NamedTuple):
  """What must be known about a population before a round is traced.

  Attributes:
    num_clients: N.
    capacity: examples of the largest client.
    equal: whether every client holds as many examples as any other.
  """

  num_clients: int
  capacity: int
  equal: bool


@jax.custom_batching.custom_vmap
def side_by_side(count: jax.Array) -> jax.Array:
  """Returns `count`; under vmap the largest one, which is then not batched: for a trip count.

  A loop up to a batched count would run to the largest as well, but keep the old carry of every
  client in every step. Groups of devices with divided parameters have one trip count (`groups`).
  """
  return groups.in_step(count)


@side_by_side.def_vmap
def _(size: int, batched: list[bool], count: jax.Array) -> tuple[jax.Array, bool]:
  del size
  return side_by_side(jnp.max(count) if batched[0] else count), False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Examples:
  """One client's examples: indices into the population's arrays, gathered batch by batch.

  Attributes:
    arrays: the population's arrays [T, ...].
    index: the population's index [M].
    start: int32 scalar, where this client's part of `index` begins.
    count: int32 scalar, number of this client's examples.
    longest: int32 scalar, the largest count among the clients that run side by side with this one;
      never batched, so a loop up to it has one trip count for all of them.
    capacity: examples of the largest client of the population (static).
    ragged: false if all clients that run side by side have `longest` examples (static), so that
      no client has to skip whole steps.
    transforms: functions batch -> batch, applied after the gather, first to last (static).
  """

  arrays: Batch
  index: jax.Array
  start: jax.Array
  count: jax.Array
  longest: jax.Array
  capacity: int = dataclasses.field(metadata={'static': True})
  ragged: bool = dataclasses.field(default=True, metadata={'static': True})
  transforms: tuple[Transform, ...] = dataclasses.field(default=(), metadata={'static': True})

  def take(self, positions: jax.Array) -> Batch:
    """Returns the examples at `positions` [B] in 0 … count - 1 as a batch of arrays [B, ...].

    Positions at or beyond `count` give the client's last example, which the caller masks. It is
    never another client's: where that is NaN, the gradient of the masked loss would be 0 * NaN.
    """
    last = jnp.maximum(self.count - 1, 0)
    rows = self.index.at[self.start + jnp.minimum(positions, last)].get(mode='clip')
    batch = {name: x.at[rows].get(mode='clip') for name, x in self.arrays.items()}
    for transform in self.transforms:
      batch = transform(batch)
    return batch

  def fold(
    self,
    f: Callable[[Any, Rows], Any],
    carry: Any,
    batch_size: int,
    chosen: tuple[jax.Array, jax.Array] | None = None,
  ) -> Any:
    """Returns the carry after `carry = f(carry, rows)` over the examples, batch after batch.

    Args:
      f: (carry, rows [B]) -> carry, with B = min(batch_size, the most rows there can be).
      carry: the first carry, a tree of arrays.
      batch_size: examples held at a time.
      chosen: (positions [R] int32, mask [R]) of the examples to go over; None: all of them.
    """
    size = min(batch_size, self.capacity if chosen is None else len(chosen[0]))
    padding = 0 if chosen is None else -len(chosen[0]) % size
    padded = [jnp.pad(x, (0, padding)) for x in chosen or ()]
    # As many batches as the largest of the clients side by side has, so that under vmap all of them
    # have the same trip count. Of the chosen ones, those after the last in the mask are left out.
    most = self.longest
    if chosen is not None:
      most = side_by_side(jnp.max(jnp.where(chosen[1], jnp.arange(1, len(chosen[1]) + 1), 0)))
    batches = -(-most // size)

    def one(number: jax.Array, carry: Any) -> Any:
      if chosen is None:
        positions = number * size + jnp.arange(size, dtype=jnp.int32)
        mask = positions < self.count
      else:
        positions, mask = (jax.lax.dynamic_slice(x, (number * size,), (size,)) for x in padded)
      return f(carry, Rows(self.take(positions), mask, positions, number))

    return jax.lax.fori_loop(0, batches, one, carry)

  def map(self, transform: Transform) -> 'Examples':
    """Returns the examples with `transform` applied to every batch, after earlier transforms."""
    return dataclasses.replace(self, transforms=(*self.transforms, transform))


def in_batches(
  arrays: dict[str, Any], batch_size: int, multiple: int = 1
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Returns the examples in batches, name -> [K, B, ...], and which of them are real, [K, B].

  Padding repeats the first example, a valid one, and is masked.

  Args:
    arrays: name -> [T, ...], T >= 1, on the host.
    batch_size: examples of a batch, at most.
    multiple: what K is a multiple of, such as the number of devices.
  """
  total = len(next(iter(arrays.values())))
  size = min(batch_size, -(-total // multiple))
  count = -(-total // (size * multiple)) * multiple

  def cut(x: Any) -> np.ndarray:
    x = np.asarray(x)
    padded = np.concatenate([x, np.broadcast_to(x[:1], (count * size - total, *x.shape[1:]))])
    return padded.reshape(count, size, *x.shape[1:])

  mask = (np.arange(count * size) < total).reshape(count, size)
  return {name: cut(x) for name, x in arrays.items()}, mask


def shape_of(population: Population) -> Shape:
  """Returns the static facts about a population whose arrays are concrete.

  Raises:
    ValueError: no client, or a client without examples.
  """
  count = jax.device_get(population.count)
  if not count.size or count.min() < 1:
    empty = (count < 1).nonzero()[0][:5].tolist()
    raise ValueError(
      f'population.count must be examples >= 1 of at least one client, got {count.size} clients, '
      f'of which {empty!r} are without.'
    )
  return Shape(len(count), int(count.max()), bool((count == count[0]).all()))


def _joined(parts: list[Any]) -> jax.Array:
  """Returns arrays one after another, with the dtype that jax gives them.

  On the host: a compiled concatenation of some thousand parts takes minutes to compile.
  """
  parts = [x if hasattr(x, 'dtype') else jnp.asarray(x) for x in parts]
  dtypes = {x.dtype for x in parts}
  if any(jnp.issubdtype(x, jax.dtypes.extended) for x in dtypes):  # keys of jax.random
    return jnp.concatenate(parts)
  dtype = jnp.result_type(*map(jax.dtypes.canonicalize_dtype, dtypes))
  held = [np.asarray(x) for x in parts]
  return jnp.asarray(np.concatenate(held, dtype=dtype, casting='unsafe'))


def stack_clients(clients: list[dict[str, Any]]) -> Population:
  """Returns a population made of the clients' own examples, a dict name -> [n_k, ...] each.

  Raises:
    ValueError: no clients, a client without examples, or names or lengths that do not agree.
  """
  if not clients:
    raise ValueError('clients must be a list of at least one client, got [].')
  counts = []
  for i, client in enumerate(clients):
    sizes = {name: len(x) for name, x in client.items()}
    lengths = set(sizes.values())
    if sorted(client) != sorted(clients[0]) or len(lengths) != 1 or 0 in lengths:
      raise ValueError(
        f'client {i} must hold the arrays {sorted(clients[0])!r} of one length >= 1, '
        f'got { {k: len(v) for k, v in client.items()}!r}.'
      )
    counts.append(lengths.pop())
  arrays = {k: _joined([c[k] for c in clients]) for k in clients[0]}
  count = jnp.asarray(counts, jnp.int32)
  start = jnp.cumsum(count, dtype=jnp.int32) - count
  return Population(arrays, jnp.arange(sum(counts), dtype=jnp.int32), start, count)
