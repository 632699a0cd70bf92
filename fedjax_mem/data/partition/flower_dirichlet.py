"""Labels by Dirichlet distributions, draw for draw as Flower does it."""

from collections.abc import Sequence

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.data.partition._base import (
  Partition,
  by_label,
  concentration,
  enough,
  redrawn,
  shares,
  shuffled,
)


def flower_dirichlet(
  labels: np.ndarray,
  num_clients: int,
  rng: np.random.Generator,
  *,
  alpha: float | Sequence[float],
  min_examples: int = 10,
  self_balancing: bool = False,
) -> Partition:
  """Returns the partition of `flwr_datasets.partitioner.DirichletPartitioner`, list for list.

  Each label in turn is cut, in the order of the rows, into shares drawn from Dirichlet(alpha). The
  whole is drawn again until every client holds `min_examples`; then each client's list is shuffled.
  With `numpy.random.default_rng(seed)` the lists are those of Flower for its `seed`, order
  included, wherever Flower has some: it gives up after 11 draws, and where a label falls on full
  clients alone; here such a label keeps its shares as drawn.

  Other than `dirichlet`, clients stay open beyond T / N examples unless `self_balancing`, under
  which they close at more than that, and labels are not shuffled before they are cut.

  Reference: Yurochkin et al. (2019), arXiv 1905.12022; flwr-datasets 0.6.1, Apache 2.0.

  Args:
    labels: [T].
    num_clients: N.
    rng: source of all draws.
    alpha: parameter of the Dirichlet distribution, > 0; or one for each client, [N].
    min_examples: least number of examples of a client, >= 1; Flower's `min_partition_size`.
    self_balancing: whether a client that holds more than T / N examples gets no later label.

  Raises:
    ValueError: none of 1000 draws gave every client `min_examples`.
  """
  weights = concentration(alpha, num_clients, 'client')
  validate.integer(min_examples=min_examples)
  validate.boolean(self_balancing=self_balancing)
  enough(len(labels), num_clients, min_examples)
  rows_of = [rows for rows in by_label(labels) if len(rows)]  # a label that is absent draws nothing

  def draw() -> tuple[list[list[np.ndarray]], np.ndarray]:
    sizes = np.zeros(num_clients, np.int64)
    pieces: list[list[np.ndarray]] = []
    for rows in rows_of:
      share = shares(rng, weights)
      if self_balancing:
        open_share = np.where(sizes > len(labels) / num_clients, 0.0, share)
        # The last of `cumsum` is Flower's sum, from left to right; `sum` adds in another order.
        total = np.cumsum(open_share)[-1]
        share = open_share / total if total > 0 else share
      cuts = (np.cumsum(share) * len(rows)).astype(int)[:-1]
      pieces.append(np.split(rows, cuts))
      sizes += [len(x) for x in pieces[-1]]
    return pieces, sizes

  pieces = redrawn(draw, min_examples, 'alpha must be larger', alpha=alpha)
  return Partition.of(shuffled([np.concatenate(x) for x in zip(*pieces, strict=True)], rng))
