"""Each client's own mixture of labels, drawn from a Dirichlet distribution."""

from collections.abc import Sequence

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.data.partition._base import (
  Partition,
  by_label,
  concentration,
  enough,
  missing,
  offsets_of,
  shuffled,
)


def inner_dirichlet(
  labels: np.ndarray,
  num_clients: int,
  rng: np.random.Generator,
  *,
  alpha: float | Sequence[float],
  sizes: Sequence[int] | None = None,
) -> Partition:
  """Returns a partition of given sizes in which each client mixes labels by Dirichlet(alpha).

  Examples are given out one by one: a client is drawn among those with room, then a label from its
  mixture. A label that has run out leaves all mixtures. With `numpy.random.default_rng(seed)` and
  the same sizes the lists are those of `flwr_datasets.partitioner.InnerDirichletPartitioner`, order
  included, wherever that has some: it fails once a client's whole mixture has run out; here the
  client then draws from what is left.

  Reference: Acar et al. (2021), FedDyn, arXiv 2111.04263; flwr-datasets 0.6.1, Apache 2.0.

  Args:
    labels: [T], with K labels 0 … K - 1.
    num_clients: N.
    rng: source of all draws.
    alpha: parameter of the Dirichlet distribution, > 0; or one for each label, [K].
    sizes: [N] examples of each client, >= 1, at most T in all; None: T / N, up to one example.
  """
  rows_of = by_label(labels)
  weights = concentration(alpha, len(rows_of), 'label')
  wanted = _sizes(len(labels), num_clients, sizes)
  lists = [np.zeros(size, np.int64) for size in wanted]
  mixtures = rng.dirichlet(weights, num_clients)
  left = np.array([len(rows) for rows in rows_of])
  bounds = _bounds(mixtures, left)
  room, open_clients, to_give = wanted.copy(), list(range(num_clients)), int(wanted.sum())
  while to_give:
    # `integers` and `random` are what `Generator.choice` draws by, and ten times as fast.
    client = open_clients[rng.integers(0, len(open_clients))]
    if not room[client]:
      open_clients.remove(client)
      continue
    label = int(bounds[client].searchsorted(rng.random(), side='right'))
    while not left[label]:
      mixtures[:, label] = 0
      with np.errstate(invalid='ignore'):
        mixtures /= mixtures.sum(axis=1, keepdims=True)
      bounds = _bounds(mixtures, left)
      label = int(bounds[client].searchsorted(rng.random(), side='right'))
    room[client] -= 1
    left[label] -= 1
    to_give -= 1
    lists[client][room[client]] = rows_of[label][left[label]]
  index = np.concatenate(shuffled(lists, rng)).astype(np.int32)
  return Partition(index, offsets_of(wanted), missing(labels, index))


def _bounds(mixtures: np.ndarray, left: np.ndarray) -> np.ndarray:
  """Returns the cumulated mixtures [N, K] that labels are drawn by, as `Generator.choice` does."""
  lost = ~(np.isfinite(mixtures).all(axis=1) & (mixtures.sum(axis=1) > 0))
  if lost.any():
    mixtures[lost] = left / left.sum()
  bounds: np.ndarray = mixtures.cumsum(axis=1)
  bounds /= bounds[:, -1:]
  return bounds


def _sizes(total: int, num_clients: int, sizes: Sequence[int] | None) -> np.ndarray:
  """Returns the clients' sizes [N] int64."""
  if sizes is None:
    enough(total, num_clients)
    return total // num_clients + (np.arange(num_clients) < total % num_clients)
  if not isinstance(sizes, Sequence | np.ndarray) or len(sizes) != num_clients:
    raise ValueError(f'sizes must be {num_clients} integers, one a client, got {sizes!r}.')
  for i, size in enumerate(sizes):
    validate.integer(**{f'sizes[{i}]': int(size) if isinstance(size, np.integer) else size})
  if sum(sizes) > total:
    raise ValueError(f'sizes must be {total} examples in all, or fewer, got {sum(sizes)}.')
  return np.asarray(sizes, np.int64)
