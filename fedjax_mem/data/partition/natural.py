"""The clients that the examples come with."""

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.data.partition._base import Partition, missing, offsets_of


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
  return Partition(order, offsets_of(counts[chosen]), missing(labels, order), clients=chosen)
