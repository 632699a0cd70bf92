"""Random clients of equal size."""

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.data.partition._base import Partition, enough
from fedjax_mem.data.partition.blocks import blocks


def iid(
  labels: np.ndarray, num_clients: int, rng: np.random.Generator, *, by_choice: bool = False
) -> Partition:
  """Returns a random partition into clients of equal size (up to one example).

  Args:
    labels: [T]; only their number matters.
    num_clients: N.
    rng: source of the permutation.
    by_choice: whether the permutation is `rng.choice` without replacement, as in Flower's baseline
      `niid_bench`, whose lists these are with `numpy.random.default_rng(seed)`.
  """
  enough(len(labels), num_clients)
  if not validate.boolean(by_choice=by_choice):
    return blocks(labels, num_clients, rng)
  order = rng.choice(len(labels), len(labels), replace=False)
  return Partition.of(np.array_split(order, num_clients))
