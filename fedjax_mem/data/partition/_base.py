"""What partitions share: the type, and what several of them compute."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from fedjax_mem.core import validate

T = TypeVar('T')

_MAX_DRAWS = 1000


class Partition(NamedTuple):
  """Lists of rows, client after client.

  Attributes:
    index: [M] int32, rows of the examples.
    offsets: [N+1] int64; client i holds index[offsets[i]:offsets[i+1]].
    unused_labels: labels of which no example is in `index`.
    noise: [N] float64, standard deviation of the noise on each client's inputs, or None.
    clients: [N] int64, ids of these clients in the data set, or None.
    names: [N] names of these clients, or None: the data set has them, if anybody.
  """

  index: np.ndarray  # type: ignore[assignment]
  offsets: np.ndarray
  unused_labels: tuple[int, ...] = ()
  noise: np.ndarray | None = None
  clients: np.ndarray | None = None
  names: tuple[str, ...] | None = None

  @classmethod
  def of(cls, rows: Sequence[np.ndarray], unused_labels: tuple[int, ...] = ()) -> 'Partition':
    """Returns the partition that gives rows[i] to client i.

    Raises:
      ValueError: no clients, or a client without examples.
    """
    if not len(rows):
      raise ValueError('partition must have at least one client, got none.')
    counts = np.array([len(r) for r in rows], np.int64)
    if not counts.all():
      raise ValueError(
        f'every client must hold at least one example, got none for client {int(counts.argmin())}; '
        'use fewer clients.'
      )
    index = np.concatenate(rows)
    if not np.issubdtype(index.dtype, np.integer):
      raise ValueError(f'rows of a partition must be integers, got {index.dtype}.')
    if index.min() < 0 or index.max() > np.iinfo(np.int32).max:
      raise ValueError(
        f'rows of a partition must be in [0, 2**31), got {index.min()} to {index.max()}.'
      )
    return cls(index.astype(np.int32), offsets_of(counts), unused_labels)


def offsets_of(counts: np.ndarray) -> np.ndarray:
  """Returns [N+1] int64, where each client's rows begin, from their numbers [N]."""
  return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def enough(total: int, num_clients: int, min_examples: int = 1) -> None:
  """Raises `ValueError` if there are too few examples for `min_examples` a client."""
  if num_clients * min_examples > total:
    raise ValueError(
      f'num_clients must leave at least {min_examples} of the {total} examples to each, '
      f'got {num_clients!r}.'
    )


def by_label(labels: np.ndarray) -> list[np.ndarray]:
  """Returns the rows of each label 0 … K - 1, in order."""
  labels = np.asarray(labels)
  if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f'labels must be one integer an example, got {labels.dtype} {labels.shape!r}; partition '
      "others by 'natural', 'column', 'iid', 'sizes' or 'quantity_skew'."
    )
  order = np.argsort(labels, kind='stable')
  return np.split(order, np.cumsum(np.bincount(labels))[:-1])


def shuffled(rows: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
  """Returns each client's rows in random order; before, they are sorted by label."""
  return [rng.permutation(r) for r in rows]


def missing(labels: np.ndarray, index: np.ndarray) -> tuple[int, ...]:
  """Returns the classes of which no example is in `index`; () for labels that are no classes."""
  labels = np.asarray(labels)
  classes = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
  if not classes or len(index) >= len(labels):
    return ()
  return tuple(int(k) for k in np.setdiff1d(labels, labels[index]))


def concentration(alpha: float | Sequence[float], number: int, what: str) -> np.ndarray:
  """Returns the parameters of a Dirichlet distribution, [number] float64.

  Args:
    alpha: one for all, or one each; > 0.
    number: how many there are.
    what: whose they are, for messages.

  Raises:
    ValueError: one that is not finite and > 0, or another number of them.
  """
  if not isinstance(alpha, Sequence | np.ndarray):
    return np.repeat(float(validate.positive(alpha=alpha)), number)
  if len(alpha) != number:
    raise ValueError(f'alpha must be one number, or {number}, one a {what}, got {len(alpha)}.')
  for i, value in enumerate(alpha):
    validate.positive(**{f'alpha[{i}]': float(value) if isinstance(value, np.number) else value})
  return np.asarray(alpha, np.float64)


def redrawn(
  draw: Callable[[], tuple[T, np.ndarray]], min_examples: int, remedy: str, **got: object
) -> T:
  """Returns the first draw in which every client holds `min_examples`.

  Args:
    draw: () -> a partition, or what one is made of, and the sizes [N] of its clients.
    min_examples: least number of examples of a client.
    remedy: which argument must change, for the message.
    **got: what the draw depends on, for the message.

  Raises:
    ValueError: none of 1000 draws is like that.
  """
  for _ in range(_MAX_DRAWS):
    made, sizes = draw()
    if sizes.min() >= min_examples:
      return made
  said = ''.join(f'{name} = {value!r}, ' for name, value in got.items())
  raise ValueError(
    f'{remedy}, num_clients or min_examples smaller: in {_MAX_DRAWS} draws some client '
    f'had fewer than min_examples = {min_examples}, got {said}{len(sizes)} clients.'
  )


def shares(rng: np.random.Generator, weights: np.ndarray) -> np.ndarray:
  """Returns a draw of the Dirichlet distribution, [N].

  Raises:
    ValueError: of weights so small, or so large, that floats cannot hold the draw.
  """
  drawn: np.ndarray = rng.dirichlet(weights)
  if not drawn.sum() > 0:
    raise ValueError(
      f'alpha must be a number by which shares can be drawn, got {float(weights[0])!r}.'
    )
  return drawn
