"""So many labels a client."""

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.data.partition._base import Partition, by_label, shuffled


def labels_per_client(
  labels: np.ndarray,
  num_clients: int,
  rng: np.random.Generator,
  *,
  labels_per_client: int,
) -> Partition:
  """Returns a partition in which client i holds label i mod K and random other labels.

  Each label's examples are split equally among the clients that hold it; labels of no client are
  unused. With `numpy.random.default_rng(seed)` the draws are those of Flower's baseline
  `niid_bench`; the order of a client's examples is not.

  Reference: Li, Diao, Chen, He (2022), NIID-Bench, arXiv 2102.02079, section 4.1 (#C).

  Args:
    labels: [T], with K distinct values.
    num_clients: N.
    rng: source of all draws.
    labels_per_client: number of labels of each client, #C, in [1, K].
  """
  rows_of = by_label(labels)
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
  return Partition.of(shuffled([np.concatenate(p) for p in parts], rng), unused)
