"""Blocks of one random permutation."""

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.data.partition._base import Partition, enough, missing, offsets_of


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
    enough(len(labels), num_clients)
    sizes = np.full(num_clients, len(labels) // num_clients, np.int64)
    sizes[: len(labels) % num_clients] += 1
  else:
    validate.integer(1, len(labels), examples_per_client=examples_per_client)
    sizes = np.full(num_clients, examples_per_client, np.int64)
  offsets = offsets_of(sizes)
  index = np.resize(order.astype(np.int32), int(offsets[-1]))
  return Partition(index, offsets, missing(labels, index))
