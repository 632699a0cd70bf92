"""A share of each client's examples is held out: the client does not train on them."""

import dataclasses

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.data.partition._base import offsets_of
from fedjax_mem.data.source import FederatedData, HeldOut
from fedjax_mem.tasks import Classification

# Makes the draw independent of those of the partition and the validation split, from the same seed.
_HELD = 0x68656C64


def hold_out_of_clients(data: FederatedData, share: float, seed: int) -> FederatedData:
  """Returns the data with a share of each client's examples held out.

  Of n examples share × n are drawn uniformly, rounded half up, and at least one is left. So a
  client with few examples may hold out none. A client's draw depends only on the seed, its position
  and its size, not on other clients; the examples that are left keep their order. If two clients
  hold the same example ('blocks' may repeat them), one may train on what the other holds out.

  >>> data = fm.data.load('digits', partition='iid', num_clients=5)
  >>> held = hold_out_of_clients(data, 0.25, 0)
  >>> held.counts.tolist(), np.diff(held.held.offsets).tolist()
  ([216, 216, 216, 215, 215], [72, 72, 72, 72, 72])

  Args:
    data: N clients.
    share: in [0, 1); 0: none are held out.
    seed: seed of the draw.

  Raises:
    ValueError: the share is not in [0, 1), some are held out already, or no client has enough
      examples to hold one out.
  """
  validate.below_one(share=share)
  validate.integer(0, seed=seed)
  if not share:
    return data
  if data.held is not None:
    raise ValueError(f'share must be 0 for data of which a part is held out, got {share!r}.')
  counts = data.counts
  numbers = np.minimum(np.floor(share * counts + 0.5).astype(np.int64), counts - 1)
  if not numbers.any():
    raise ValueError(
      f'share must hold out an example of some client, got {share!r} of at most {counts.max()}.'
    )
  out = np.zeros(len(data.index), bool)
  for client in np.flatnonzero(numbers).tolist():
    rng = np.random.default_rng([seed, _HELD, client])
    chosen = rng.permutation(counts[client])[: numbers[client]]
    out[data.offsets[client] + chosen] = True
  index = data.index[~out]
  return dataclasses.replace(
    data,
    index=index,
    offsets=offsets_of(counts - numbers),
    unused_labels=_unused(data, index),
    held=HeldOut(data.index[out], offsets_of(numbers)),
  )


def _unused(data: FederatedData, index: np.ndarray) -> tuple[int, ...]:
  """Returns the classes that no client trains on, of those in the data."""
  labels = np.asarray(data.arrays['y'])
  if not isinstance(data.task, Classification):
    return data.unused_labels
  return tuple(int(k) for k in np.setdiff1d(labels, labels[index]))
