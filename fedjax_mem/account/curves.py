"""Epsilon of composed events, from `dp_accounting`'s Renyi curves and privacy loss distributions.

Both are computed once for an event and cached, so that epsilon after another number of rounds costs
only the composition.
"""

import contextlib
import functools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_CHUNK = 4096


def _relation(adjacency: str) -> Any:
  import dp_accounting

  return dp_accounting.NeighboringRelation[adjacency.upper()]


def _accountant(name: str, adjacency: str, orders: Any = None) -> Any:
  from dp_accounting import pld, rdp

  if name == 'rdp':
    return rdp.RdpAccountant(orders, neighboring_relation=_relation(adjacency))
  return pld.PLDAccountant(_relation(adjacency))


def supports(name: str, event: Any, adjacency: str) -> bool:
  """Returns whether the accountant supports the event under the adjacency."""
  return bool(_accountant(name, adjacency).supports(event))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides log lines on orders that do not converge: leaving out an order is sound."""
  log = logging.getLogger('absl')
  before = log.level
  log.setLevel(logging.ERROR)
  try:
    yield
  finally:
    log.setLevel(before)


def _renyi(
  event: Any, adjacency: str, orders: tuple[int, ...] | None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (orders [A], divergences [A]) of one event, cached unless the event has no hash."""
  try:
    return _kept_renyi(event, adjacency, orders)
  except TypeError:
    return _kept_renyi.__wrapped__(event, adjacency, orders)


@functools.lru_cache(maxsize=1024)
def _kept_renyi(
  event: Any, adjacency: str, orders: tuple[int, ...] | None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (orders [A], divergences [A]) of one event."""
  import dp_accounting

  with _quiet():
    done = _accountant('rdp', adjacency, orders).compose(event)
  values = done.rdp
  if isinstance(event, dp_accounting.SampledWithoutReplacementDpEvent):
    # The bound for sampling without replacement is loose near a rate of 1, where it exceeds the
    # divergence without sampling, which always holds.
    values = np.minimum(values, _renyi(event.event, adjacency, orders)[1])
  # A divergence is not negative: such a value is a rounding error, and its order is left out.
  return done.orders, np.where(values >= 0, values, np.inf)


def rdp_epsilon(
  event: Any, counts: np.ndarray, adjacency: str, delta: float, at: tuple[int, ...] | None = None
) -> np.ndarray:
  """Returns epsilon [R] of `counts` [R] compositions of the event, by the Renyi orders `at`.

  For Laplace noise the infinite order is used too, which is the sum of the pure epsilons.

  Reference: Canonne, Kamath, Steinke (2020), arXiv 2004.00010, Proposition 12.
  """
  import dp_accounting

  orders, values = _renyi(event, adjacency, at)
  constant = np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
  distinct, back = np.unique(counts, return_inverse=True)
  found = []
  for start in range(0, len(distinct), _CHUNK):
    total = distinct[start : start + _CHUNK, None] * values
    # If delta >= sqrt(1 - exp(-divergence)), which bounds the total variation, epsilon is 0.
    free = delta**2 + np.expm1(-total) > 0
    found.append(np.where(free, 0.0, total + constant).min(axis=1))
  epsilon = np.maximum(np.concatenate(found), 0.0)
  if isinstance(event, dp_accounting.LaplaceDpEvent):
    epsilon = np.minimum(epsilon, distinct / event.noise_multiplier)
  return np.maximum.accumulate(epsilon)[back]


def rdp_of_several(
  events: Sequence[tuple[Any, int]], adjacency: str, delta: float, at: tuple[int, ...] | None = None
) -> float:
  """Returns epsilon of several events, each with how often it is composed, as `rdp_epsilon`."""
  found = [(_renyi(event, adjacency, at), count) for event, count in events]
  orders = found[0][0][0]
  total = sum(count * values for (_, values), count in found)
  if (delta**2 + np.expm1(-total) > 0).any():
    return 0.0
  constant = np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
  return max(0.0, float((total + constant).min()))


def pld_of_several(events: Sequence[tuple[Any, int]], adjacency: str, delta: float) -> float:
  """Returns epsilon of several events, each with how often it is composed, by the library."""
  accountant = _accountant('pld', adjacency)
  for event, count in events:
    accountant.compose(event, count)
  return float(accountant.get_epsilon(delta))


@functools.lru_cache(maxsize=8)
def _loss(event: Any, adjacency: str, interval: float) -> Any:
  """Returns the privacy loss distribution of one event that has sampling or Laplace noise."""
  import dp_accounting
  from dp_accounting.pld import privacy_loss_distribution as pld

  grid = {'value_discretization_interval': interval}
  relation = {'neighboring_relation': _relation(adjacency)}
  if isinstance(event, dp_accounting.TruncatedSubsampledGaussianDpEvent):
    return pld.from_truncated_subsampled_gaussian_mechanism(
      event.dataset_size,
      event.sampling_probability,
      event.truncated_batch_size,
      event.noise_multiplier,
      **grid,
      **relation,
    )
  sampled = isinstance(event, dp_accounting.PoissonSampledDpEvent)
  rate = event.sampling_probability if sampled else 1.0
  inner = event.event if sampled else event
  if isinstance(inner, dp_accounting.LaplaceDpEvent):
    return pld.from_laplace_mechanism(inner.noise_multiplier, sampling_prob=rate, **grid)
  return pld.from_gaussian_mechanism(inner.noise_multiplier, sampling_prob=rate, **grid, **relation)


def pure_epsilon(event: Any, count: int) -> float | None:
  """Returns the pure epsilon of `count` Laplace releases without sampling; else None."""
  import dp_accounting

  sampled = isinstance(event, dp_accounting.PoissonSampledDpEvent)
  inner = event.event if sampled else event
  is_laplace = isinstance(inner, dp_accounting.LaplaceDpEvent)
  return count / inner.noise_multiplier if is_laplace else None


def has_grid(event: Any) -> bool:
  """Returns whether `_loss` knows the distribution of an event."""
  import dp_accounting as dp

  if isinstance(event, dp.TruncatedSubsampledGaussianDpEvent):
    return True
  inner = event.event if isinstance(event, dp.PoissonSampledDpEvent) else event
  return isinstance(inner, dp.GaussianDpEvent | dp.LaplaceDpEvent)


def is_gaussian(event: Any) -> bool:
  """Returns whether the event is Gaussian noise without sampling."""
  import dp_accounting

  return isinstance(event, dp_accounting.GaussianDpEvent)


def gaussian_epsilon(event: Any, count: int, adjacency: str, delta: float) -> float:
  """Returns epsilon of `count` unsampled Gaussians in closed form: PLD with a grid without error.

  Together they are one Gaussian of multiplier z / sqrt(count).

  Reference: Balle and Wang (2018), arXiv 1805.06530, Theorem 5.
  """
  import dp_accounting

  doubled = 2 if adjacency == 'replace_one' else 1
  multiplier = event.noise_multiplier / (doubled * math.sqrt(count))
  return float(dp_accounting.get_epsilon_gaussian(multiplier, delta))


def pld_epsilon(event: Any, count: int, adjacency: str, delta: float, interval: float) -> float:
  """Returns epsilon of `count` compositions of an event.

  The grid has that interval if `has_grid`, else the library's own. Results are kept, unless the
  event has no hash.
  """
  try:
    return _kept_pld(event, count, adjacency, delta, interval)
  except TypeError:
    return _kept_pld.__wrapped__(event, count, adjacency, delta, interval)


@functools.lru_cache(maxsize=4096)
def _kept_pld(event: Any, count: int, adjacency: str, delta: float, interval: float) -> float:
  """Returns epsilon of `count` compositions of an event."""
  if not has_grid(event):
    return float(_accountant('pld', adjacency).compose(event, count).get_epsilon(delta))
  return float(_loss(event, adjacency, interval).self_compose(count).get_epsilon_for_delta(delta))


def forget() -> None:
  """Empties the caches, so that a measurement finds nothing kept from before."""
  for kept in (_kept_renyi, _loss, _kept_pld):
    kept.cache_clear()
