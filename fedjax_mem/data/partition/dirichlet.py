"""Labels by Dirichlet distributions, as NIID-Bench does it."""

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


def dirichlet(
  labels: np.ndarray,
  num_clients: int,
  rng: np.random.Generator,
  *,
  alpha: float | Sequence[float],
  min_examples: int = 10,
) -> Partition:
  """Returns a partition in which each label is spread over the clients by Dirichlet(alpha).

  A client that already holds T / N examples gets none of the later labels. The whole partition is
  drawn again until every client holds `min_examples`. With `numpy.random.default_rng(seed)` the
  draws are those of Flower's baseline `niid_bench`; the order of a client's examples is not.

  Reference: Yurochkin et al. (2019), arXiv 1905.12022; Li, Diao, Chen, He (2022), NIID-Bench,
  arXiv 2102.02079, section 4.1.

  Args:
    labels: [T].
    num_clients: N.
    rng: source of all draws.
    alpha: parameter of the Dirichlet distribution, > 0; small values give few labels per client. Or
      one for each client, [N]: its mean share of a label is in proportion, while it is open.
    min_examples: least number of examples of a client, >= 1.

  Raises:
    ValueError: none of 1000 draws gave every client `min_examples`.
  """
  weights = concentration(alpha, num_clients, 'client')
  validate.integer(min_examples=min_examples)
  enough(len(labels), num_clients, min_examples)
  rows_of = by_label(labels)

  def draw() -> tuple[list[list[np.ndarray]], np.ndarray]:
    sizes = np.zeros(num_clients, np.int64)
    pieces: list[list[np.ndarray]] = []
    for rows in rows_of:
      rows = rows.copy()
      rng.shuffle(rows)
      share = shares(rng, weights)
      # Clients that hold T / N examples or more get nothing of this label.
      open_share = share * (sizes < len(labels) / num_clients)
      # With a tiny alpha the whole share may fall on clients that are full already.
      share = open_share if open_share.sum() > 0 else share
      cuts = (np.cumsum(share / share.sum()) * len(rows)).astype(int)[:-1]
      pieces.append(np.split(rows, cuts))
      sizes += np.diff(np.concatenate([[0], cuts, [len(rows)]]))
    return pieces, sizes

  pieces = redrawn(draw, min_examples, 'alpha must be larger', alpha=alpha)
  return Partition.of(shuffled([np.concatenate(x) for x in zip(*pieces, strict=True)], rng))
