"""Partitions of examples over clients: pure NumPy functions from labels to lists of rows.

Every function takes labels [T] and gives each example to at most one client; partitions that cover
all labels give it to exactly one. Labels that no client holds are listed in `unused_labels`. Only
`blocks` may repeat examples, if it is asked for more than there are. All draws come from the given
generator, so a partition is a function of its seed.

A new partition is one function and one line in `PARTITIONS`.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_mem.core import validate

_MAX_DRAWS = 1000


class Partition(NamedTuple):
  """Lists of rows, client after client.

  Attributes:
    index: [M] int32, rows of the examples.
    offsets: [N+1] int64; client i holds index[offsets[i]:offsets[i+1]].
    unused_labels: labels of which no example is in `index`.
    noise: [N] float64, standard deviation of the noise on each client's inputs, or None.
    clients: [N] int64, ids of these clients in the data set, or None.
  """

  index: np.ndarray  # type: ignore[assignment]
  offsets: np.ndarray
  unused_labels: tuple[int, ...] = ()
  noise: np.ndarray | None = None
  clients: np.ndarray | None = None

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
    return cls(index.astype(np.int32), _offsets(counts), unused_labels)


def _offsets(counts: np.ndarray) -> np.ndarray:
  return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _enough(total: int, num_clients: int, min_examples: int = 1) -> None:
  if num_clients * min_examples > total:
    raise ValueError(
      f'num_clients must leave at least {min_examples} of the {total} examples to each, '
      f'got {num_clients!r}.'
    )


def _by_label(labels: np.ndarray) -> list[np.ndarray]:
  """Returns the rows of each label 0 … K - 1, in order."""
  labels = np.asarray(labels)
  if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f'labels must be one integer an example, got {labels.dtype} {labels.shape!r}; partition '
      "sequences by 'natural', 'iid' or 'quantity_skew'."
    )
  order = np.argsort(labels, kind='stable')
  return np.split(order, np.cumsum(np.bincount(labels))[:-1])


def _shuffled(rows: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
  """Returns each client's rows in random order; before, they are sorted by label."""
  return [rng.permutation(r) for r in rows]


def iid(labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> Partition:
  """Returns a random partition into clients of equal size (up to one example).

  Args:
    labels: [T]; only their number matters.
    num_clients: N.
    rng: source of the permutation.
  """
  _enough(len(labels), num_clients)
  return blocks(labels, num_clients, rng)


def blocks(
  labels: np.ndarray,
  num_clients: int,
  rng: np.random.Generator,
  *,
  examples_per_client: int | None = None,
) -> Partition:
  """Returns consecutive blocks of one random permutation; client i holds the i-th block.

  Args:
    labels: [T]; only their number and unused labels matter.
    num_clients: N.
    rng: source of the permutation.
    examples_per_client: size of a block, in [1, T]. If N blocks need more than T examples, the
      permutation is repeated, so that N may be far larger than T. None: T / N, up to one example.
  """
  order = rng.permutation(len(labels))
  if examples_per_client is None:
    _enough(len(labels), num_clients)
    sizes = np.full(num_clients, len(labels) // num_clients, np.int64)
    sizes[: len(labels) % num_clients] += 1
  else:
    validate.integer(1, len(labels), examples_per_client=examples_per_client)
    sizes = np.full(num_clients, examples_per_client, np.int64)
  offsets = _offsets(sizes)
  index = np.resize(order.astype(np.int32), int(offsets[-1]))
  return Partition(index, offsets, _missing(labels, index))


def _missing(labels: np.ndarray, index: np.ndarray) -> tuple[int, ...]:
  labels = np.asarray(labels)
  if labels.ndim != 1 or len(index) >= len(labels):
    return ()
  return tuple(int(k) for k in np.setdiff1d(labels, labels[index]))


def dirichlet(
  labels: np.ndarray,
  num_clients: int,
  rng: np.random.Generator,
  *,
  alpha: float,
  min_examples: int = 10,
) -> Partition:
  """Returns a partition in which each label is spread over the clients by Dirichlet(alpha).

  A client that already holds T / N examples gets none of the later labels. The whole partition is
  drawn again until every client holds `min_examples`. With `numpy.random.default_rng(seed)` the
  draws are those of Flower's baseline `niid_bench`.

  Reference: Yurochkin et al. (2019), arXiv 1905.12022; Li, Diao, Chen, He (2022), NIID-Bench,
  arXiv 2102.02079, section 4.1.

  Args:
    labels: [T].
    num_clients: N.
    rng: source of all draws.
    alpha: parameter of the Dirichlet distribution, > 0; small values give few labels per client.
    min_examples: least number of examples of a client, >= 1.

  Raises:
    ValueError: none of 1000 draws gave every client `min_examples`.
  """
  validate.positive(alpha=alpha)
  validate.integer(min_examples=min_examples)
  _enough(len(labels), num_clients, min_examples)
  rows_of = _by_label(labels)
  for _ in range(_MAX_DRAWS):
    sizes = np.zeros(num_clients, np.int64)
    pieces: list[list[np.ndarray]] = []
    for rows in rows_of:
      rows = rows.copy()
      rng.shuffle(rows)
      share = rng.dirichlet(np.repeat(float(alpha), num_clients))
      # Clients that hold T / N examples or more get nothing of this label.
      open_share = share * (sizes < len(labels) / num_clients)
      # With a tiny alpha the whole share may fall on clients that are full already.
      share = open_share if open_share.sum() > 0 else share
      cuts = (np.cumsum(share / share.sum()) * len(rows)).astype(int)[:-1]
      pieces.append(np.split(rows, cuts))
      sizes += np.diff(np.concatenate([[0], cuts, [len(rows)]]))
    if sizes.min() >= min_examples:
      clients = [np.concatenate(parts) for parts in zip(*pieces, strict=True)]
      return Partition.of(_shuffled(clients, rng))
  raise ValueError(
    f'alpha must be larger, num_clients or min_examples smaller: in {_MAX_DRAWS} draws some client '
    f'had fewer than min_examples = {min_examples}, got alpha = {alpha!r}, {num_clients} clients.'
  )


def labels_per_client(
  labels: np.ndarray,
  num_clients: int,
  rng: np.random.Generator,
  *,
  labels_per_client: int,
) -> Partition:
  """Returns a partition in which client i holds label i mod K and random other labels.

  Each label's examples are split equally among the clients that hold it; labels of no client are
  unused.

  Reference: Li, Diao, Chen, He (2022), NIID-Bench, arXiv 2102.02079, section 4.1 (#C).

  Args:
    labels: [T], with K distinct values.
    num_clients: N.
    rng: source of all draws.
    labels_per_client: number of labels of each client, #C, in [1, K].
  """
  rows_of = _by_label(labels)
  num_labels = len(rows_of)
  validate.integer(1, num_labels, labels_per_client=labels_per_client)
  holders: list[list[int]] = [[] for _ in range(num_labels)]
  for client in range(num_clients):
    mine = [client % num_labels]
    while len(mine) < labels_per_client:
      label = int(rng.choice(num_labels, 1)[0])
      if label not in mine:
        mine.append(label)
    for label in mine:
      holders[label].append(client)
  parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
  for rows, clients in zip(rows_of, holders, strict=True):
    rows = rows.copy()
    rng.shuffle(rows)
    if clients:
      for client, piece in zip(clients, np.array_split(rows, len(clients)), strict=True):
        parts[client].append(piece)
  unused = tuple(k for k in range(num_labels) if not holders[k] and len(rows_of[k]))
  return Partition.of(_shuffled([np.concatenate(p) for p in parts], rng), unused)


def quantity_skew(
  labels: np.ndarray,
  num_clients: int,
  rng: np.random.Generator,
  *,
  alpha: float,
  min_examples: int = 1,
) -> Partition:
  """Returns a random partition into clients whose sizes are Dirichlet(alpha) shares of T.

  The sizes are drawn again until every client holds `min_examples`; the reference asks for 10 (with
  10 clients).

  Reference: Li, Diao, Chen, He (2022), NIID-Bench, arXiv 2102.02079, section 4.3.

  Args:
    labels: [T]; only their number matters.
    num_clients: N.
    rng: source of all draws.
    alpha: parameter of the Dirichlet distribution, > 0.
    min_examples: least number of examples of a client, >= 1.

  Raises:
    ValueError: none of 1000 draws gave every client `min_examples`.
  """
  validate.positive(alpha=alpha)
  validate.integer(min_examples=min_examples)
  _enough(len(labels), num_clients, min_examples)
  order = rng.permutation(len(labels))
  for _ in range(_MAX_DRAWS):
    share = rng.dirichlet(np.repeat(float(alpha), num_clients))
    cuts = (np.cumsum(share) * len(labels)).astype(int)[:-1]
    sizes = np.diff(np.concatenate([[0], cuts, [len(labels)]]))
    if sizes.min() >= min_examples:
      return Partition(order.astype(np.int32), _offsets(sizes))
  raise ValueError(
    f'alpha must be larger, num_clients or min_examples smaller: in {_MAX_DRAWS} draws some client '
    f'had fewer than min_examples = {min_examples}, got alpha = {alpha!r}, {num_clients} clients.'
  )


def feature_noise(
  labels: np.ndarray, num_clients: int, rng: np.random.Generator, *, sigma: float
) -> Partition:
  """Returns an iid partition with noise of variance sigma i / N on the inputs of client i = 1 … N.

  The noise is Gaussian. It is drawn once, when the data are loaded, from the seed and the client,
  and added to the preprocessed inputs (images in [0, 1]); an example has the same noise in all
  rounds. Test inputs get none.

  Reference: Li, Diao, Chen, He (2022), NIID-Bench, arXiv 2102.02079, section 4.2.

  Args:
    labels: [T]; only their number matters.
    num_clients: N.
    rng: source of the permutation.
    sigma: variance of the noise of client N, >= 0.
  """
  validate.non_negative(sigma=sigma)
  noise = np.sqrt(sigma * np.arange(1, num_clients + 1) / num_clients)
  return iid(labels, num_clients, rng)._replace(noise=noise)


def natural(
  labels: np.ndarray,
  num_clients: int | None,
  rng: np.random.Generator,
  *,
  client_ids: np.ndarray,
) -> Partition:
  """Returns the partition of a data set whose examples come with clients.

  Args:
    labels: [T], to find unused labels.
    num_clients: number of clients to draw without replacement; None: all.
    rng: source of that draw.
    client_ids: [T] integers >= 0, the client of each example.
  """
  client_ids = np.asarray(client_ids)
  if client_ids.shape != (len(labels),) or not np.issubdtype(client_ids.dtype, np.integer):
    raise ValueError(
      f'client_ids must be {len(labels)} integers, got {client_ids.dtype} {client_ids.shape!r}.'
    )
  counts = np.bincount(client_ids)
  chosen = np.flatnonzero(counts)
  order = np.argsort(client_ids, kind='stable').astype(np.int32)
  # Asking for all clients draws nothing, so that it is the same as None.
  if num_clients is not None and num_clients != len(chosen):
    validate.integer(1, len(chosen), num_clients=num_clients)
    chosen = np.sort(rng.choice(chosen, num_clients, replace=False))
    order = order[np.isin(client_ids[order], chosen)]
  return Partition(order, _offsets(counts[chosen]), _missing(labels, order), clients=chosen)


PARTITIONS: dict[str, Callable[..., Partition]] = {
  'iid': iid,
  'blocks': blocks,
  'dirichlet': dirichlet,
  'labels_per_client': labels_per_client,
  'quantity_skew': quantity_skew,
  'feature_noise': feature_noise,
  'natural': natural,
}


def options_of(name: str | None) -> dict[str, inspect.Parameter]:
  """Returns name -> parameter of a partition's options; {} for None.

  Raises:
    ValueError: there is no such partition.
  """
  if name is None:
    return {}
  function = PARTITIONS[validate.one_of(PARTITIONS, partition=name)]
  parameters = inspect.signature(function).parameters.values()
  return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def partition(
  name: str, labels: np.ndarray, num_clients: int | None, *, seed: int, **options: Any
) -> Partition:
  """Returns the partition `name` of the examples.

  >>> labels = np.array([0, 1, 0, 1])
  >>> parts = partition('labels_per_client', labels, 2, seed=0, labels_per_client=1)
  >>> [sorted(rows.tolist()) for rows in np.split(parts.index, parts.offsets[1:-1])]
  [[0, 2], [1, 3]]

  Args:
    name: a key of `PARTITIONS`.
    labels: [T] labels in 0 … K - 1 (or [T, L] tokens for partitions that ignore labels).
    num_clients: N; None: all clients of the data set, for 'natural' only.
    seed: seed of all draws of the partition.
    **options: keyword arguments of the partition.

  Raises:
    ValueError: unknown name or option, a missing or bad argument, a client without examples.
  """
  known = options_of(name)
  for option in options:
    if option not in known:
      raise ValueError(
        f'options of partition {name!r} must be among {sorted(known)!r}, got {option!r}.'
        f'{validate.nearest(option, known)}'
      )
  for option, parameter in known.items():
    if parameter.default is inspect.Parameter.empty and option not in options:
      raise ValueError(f'partition {name!r} must be given {option}, got {sorted(options)!r}.')
  if num_clients is not None or name != 'natural':
    validate.integer(num_clients=num_clients)
  rng = np.random.default_rng(validate.integer(0, seed=seed))
  return PARTITIONS[name](labels, num_clients, rng, **options)
