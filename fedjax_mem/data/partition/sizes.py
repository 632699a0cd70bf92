"""Sizes of clients by a law, labels at random."""

from collections.abc import Callable

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.data.partition._base import Partition, enough, offsets_of, redrawn

# Law -> units of the clients 1 … N. The exponential is e^i over the largest: e^710 would overflow.
_LAWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  'linear': lambda i: i,
  'square': np.square,
  'exponential': lambda i: np.exp(i - i[-1]),
}


def sizes(
  labels: np.ndarray,
  num_clients: int,
  rng: np.random.Generator,
  *,
  law: str,
  sigma: float | None = None,
  min_examples: int = 1,
) -> Partition:
  """Returns a random partition into clients whose sizes follow a law; labels are at random.

  Client i = 1 … N gets a share of T in proportion to i ('linear'), i^2 ('square') or e^i
  ('exponential'), rounded down; the last one gets what is left. These are the sizes of Flower's
  `LinearPartitioner`, `SquarePartitioner` and `ExponentialPartitioner`, which take the examples in
  their order, where here they are shuffled first. Under 'log_normal' the shares are in proportion
  to exp(sigma z) with z standard normal, drawn again until every client holds `min_examples`.

  Reference: flwr-datasets 0.6.1; log-normal: Acar et al. (2021), FedDyn, arXiv 2111.04263.

  Args:
    labels: [T]; only their number matters.
    num_clients: N.
    rng: source of all draws.
    law: 'linear', 'square', 'exponential' or 'log_normal'.
    sigma: of 'log_normal', > 0, and of no other.
    min_examples: least number of examples of a client, >= 1.

  Raises:
    ValueError: a client has fewer than `min_examples`, in each of 1000 draws under 'log_normal'.
  """
  validate.one_of((*_LAWS, 'log_normal'), law=law)
  validate.integer(min_examples=min_examples)
  total = len(labels)
  enough(total, num_clients, min_examples)
  if (sigma is not None) != (law == 'log_normal'):
    raise ValueError(f"sigma must be given for 'log_normal' alone, got {sigma!r} for {law!r}.")
  order = rng.permutation(total).astype(np.int32)
  if law != 'log_normal':
    counts = _cut(_LAWS[law](np.arange(1.0, num_clients + 1)), total)
    if counts.min() < min_examples:
      raise ValueError(
        f'num_clients must leave at least min_examples = {min_examples} of {total} examples to '
        f'each under {law!r}, got {num_clients}: client {int(counts.argmin())} has {counts.min()}.'
      )
    return Partition(order, offsets_of(counts))
  scale = validate.positive(sigma=sigma)

  def draw() -> tuple[np.ndarray, np.ndarray]:
    counts = _cut(rng.lognormal(0.0, scale, num_clients), total)
    return counts, counts

  counts = redrawn(draw, min_examples, 'sigma must be smaller', sigma=sigma)
  return Partition(order, offsets_of(counts))


def _cut(units: np.ndarray, total: int) -> np.ndarray:
  """Returns sizes [N] in proportion to the units, of which the last has what rounding leaves."""
  counts: np.ndarray = (units / units.sum() * total).astype(np.int64)
  counts[-1] += total - counts.sum()
  return counts
