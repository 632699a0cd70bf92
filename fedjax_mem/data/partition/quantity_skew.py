"""Sizes by a Dirichlet distribution."""

from collections.abc import Sequence

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.data.partition._base import (
  Partition,
  concentration,
  enough,
  offsets_of,
  redrawn,
)


def quantity_skew(
  labels: np.ndarray,
  num_clients: int,
  rng: np.random.Generator,
  *,
  alpha: float | Sequence[float],
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
    alpha: parameter of the Dirichlet distribution, > 0; or one for each client, [N].
    min_examples: least number of examples of a client, >= 1.

  Raises:
    ValueError: none of 1000 draws gave every client `min_examples`.
  """
  weights = concentration(alpha, num_clients, 'client')
  validate.integer(min_examples=min_examples)
  enough(len(labels), num_clients, min_examples)
  order = rng.permutation(len(labels))

  def draw() -> tuple[np.ndarray, np.ndarray]:
    cuts = (np.cumsum(rng.dirichlet(weights)) * len(labels)).astype(int)[:-1]
    counts = np.diff(np.concatenate([[0], cuts, [len(labels)]]))
    return counts, counts

  counts = redrawn(draw, min_examples, 'alpha must be larger', alpha=alpha)
  return Partition(order.astype(np.int32), offsets_of(counts))
