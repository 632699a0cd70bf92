"""SecAgg+: a random k-regular graph in place of all pairs, with k and t from the paper's bound.

Clients are placed on a ring in random order; each is linked to the next k / 2 on either side (a
Harary graph). Only linked clients have pairwise masks and exchange shares. Three events may go
wrong; the bound sums the hypergeometric probability of each over all clients (E2: over all pairs of
gaps):

| event | what goes wrong | at most |
|---|---|---|
| E1 | t or more of an honest client's k neighbours are corrupt | 2 ** -(sigma + 1) |
| E2 | corrupt and dropped clients cut the ring: k / 2 in a row at two places | 2 ** -(sigma + 1) |
| E3 | fewer than t of a client's k neighbours are left | 2 ** -eta |

E1 and E2 break privacy (together at most 2 ** -sigma), E3 only the round.

Assumption: the graph is drawn independently of which clients are corrupt or drop out. The seed is
drawn by an honest-but-curious server, or agreed by all after the cohort is fixed. A server that
chooses the seed can surround a client with corrupt ones; so the active mode takes all pairs.

Reference: Bell, Bonawitz, Gascon, Lepoint, Raykova (2020), "Secure single-server aggregation with
(poly)logarithmic overhead", definition of good graphs and Algorithm 2.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.secagg import primitives


@dataclasses.dataclass(frozen=True)
class Degree:
  """With how many others each of n clients shares its secrets, and how many restore them.

  The two numbers protect only together, and only for this n: `degree` derives both from the bound
  above, `complete` those of all pairs.

  >>> complete(10), complete(10, active=True).threshold
  (Degree(num_clients=10, neighbours=None, threshold=6), 7)

  Attributes:
    num_clients: n, number of clients, at least 2.
    neighbours: k, number of neighbours of each client, even and below n - 1; None: all pairs.
    threshold: t, number of shares that restore a client's secrets: with all pairs above n / 2, at
      most n; else at least 2, at most k.

  Raises:
    ValueError: a number is out of range, or does not fit the others.
  """

  num_clients: int
  neighbours: int | None
  threshold: int

  def __post_init__(self) -> None:
    """Checks the numbers against each other."""
    n = validate.integer(at_least=2, num_clients=self.num_clients)
    k = self.neighbours
    if k is None:
      validate.integer(at_least=2, at_most=n, threshold=self.threshold)
      if 2 * self.threshold <= n:
        raise ValueError(
          f'threshold must be above 1/2 of num_clients = {n} with all pairs, got '
          f'{self.threshold!r}.'
        )
      return
    validate.integer(at_least=2, at_most=n - 2, neighbours=k)
    if k % 2:
      raise ValueError(f'neighbours must be even, got {k!r}.')
    validate.integer(at_least=2, at_most=k, threshold=self.threshold)


def complete(num_clients: int, *, active: bool = False) -> Degree:
  """Returns all pairs of n clients, and the least threshold that protects them.

  Args:
    num_clients: n, at least 2.
    active: whether the server may deviate: then t is above 2 n / 3, else above n / 2.

  Raises:
    ValueError: the number of clients is out of range.
  """
  n = validate.integer(at_least=2, num_clients=num_clients)
  return Degree(n, None, 2 * n // 3 + 1 if active else n // 2 + 1)


def ring(num_clients: int, seed: bytes) -> np.ndarray:
  """Returns the order of the clients on the ring, int64 [n], from a public seed."""
  words = np.zeros(num_clients, np.uint64)
  primitives.add_masks(words, [primitives.digest(b'graph', seed)], [])
  return np.argsort(words, kind='stable')


def neighbourhoods(num_clients: int, neighbours: int, seed: bytes) -> np.ndarray:
  """Returns each client's neighbours and itself, ascending, int64 [n, k + 1]."""
  order = ring(num_clients, seed)
  steps = np.arange(-(neighbours // 2), neighbours // 2 + 1)
  around = order[(np.arange(num_clients)[:, None] + steps) % num_clients]
  rows: np.ndarray = np.empty_like(around)
  rows[order] = np.sort(around, axis=1)
  return rows


def corrupt_bound(num_clients: int, neighbours: int, threshold: int, corrupt: int) -> float:
  """Returns the bound on E1: some honest client has `threshold` or more corrupt neighbours."""
  from scipy import stats  # imported where it is used: it takes a while

  others = stats.hypergeom(num_clients - 1, min(corrupt, num_clients - 1), neighbours)
  return min(1.0, num_clients * float(others.sf(threshold - 1)))


def cut_bound(num_clients: int, neighbours: int, removed: int) -> float:
  """Returns the bound on E2: without the removed clients the graph is not connected."""
  n, k = num_clients, neighbours
  if removed < k or n <= k + 1:
    return 0.0
  # The logarithm of: n (n - k - 1) / 2 pairs of gaps, times the probability that k given clients
  # are all removed, (removed! / (removed - k)!) / (n! / (n - k)!).
  pairs = math.log(n) + math.log(n - k - 1) - math.log(2)
  gone = math.lgamma(removed + 1) - math.lgamma(removed - k + 1)
  drawn = math.lgamma(n + 1) - math.lgamma(n - k + 1)
  return min(1.0, math.exp(pairs + gone - drawn))


def dropout_bound(num_clients: int, neighbours: int, threshold: int, dropped: int) -> float:
  """Returns the bound on E3: some client has fewer than `threshold` neighbours left."""
  from scipy import stats  # imported where it is used: it takes a while

  left = stats.hypergeom(num_clients - 1, max(num_clients - dropped - 1, 0), neighbours)
  return min(1.0, num_clients * float(left.cdf(threshold - 1)))


def degree(
  num_clients: int, *, corrupt: float, dropout: float, sigma: int = 40, eta: int = 30
) -> Degree:
  """Returns the smallest degree for which the bounds on E1 to E3 hold, and a threshold.

  Of the thresholds for which they hold, it is the one nearest to a majority of the neighbours.

  Args:
    num_clients: n, at least 3.
    corrupt: share of clients that may collude with the server, in [0, 1).
    dropout: share of clients that may drop out, in [0, 1); corrupt + dropout < 1.
    sigma: privacy fails with probability at most 2 ** -sigma.
    eta: a round fails with probability at most 2 ** -eta, given that share of drop-outs.

  Raises:
    ValueError: an argument is out of range, or no graph but the complete one will do.
  """
  n = validate.integer(at_least=3, num_clients=num_clients)
  for name, share in (('corrupt', corrupt), ('dropout', dropout)):
    if validate.fraction(**{name: share}) == 1:
      raise ValueError(f'{name} must be below 1, got {share!r}.')
  if corrupt + dropout >= 1:
    raise ValueError(f'corrupt + dropout must be below 1, got {corrupt + dropout!r}.')
  validate.integer(sigma=sigma)
  validate.integer(eta=eta)
  # In floats, 0.29 * 100 is just below 29: without 1e-9 its floor would be 28.
  bad, gone = (math.floor(share * n + 1e-9) for share in (corrupt, dropout))

  def private(k: int, t: int) -> bool:
    return corrupt_bound(n, k, t, bad) <= 2.0 ** -(sigma + 1)

  def fails(k: int, t: int) -> bool:
    return dropout_bound(n, k, t, gone) > 2.0**-eta

  for k in range(2, n - 1, 2):
    if cut_bound(n, k, min(bad + gone, n)) > 2.0 ** -(sigma + 1):
      continue
    low = _least(functools.partial(private, k), 2, k)
    high = _least(functools.partial(fails, k), 2, k) - 1
    if low <= high:
      return Degree(n, k, min(max(k // 2 + 1, low), high))
  raise ValueError(
    f'num_clients must be larger for a sparse graph at corrupt = {corrupt!r}, dropout = '
    f'{dropout!r}, sigma = {sigma!r}, eta = {eta!r}, got {num_clients!r}: use all pairs.'
  )


def _least(holds: Callable[[int], bool], first: int, last: int) -> int:
  """Returns the least integer of [first, last] from which on `holds` is true, or last + 1."""
  while first <= last:
    middle = (first + last) // 2
    if holds(middle):
      last = middle - 1
    else:
      first = middle + 1
  return first
