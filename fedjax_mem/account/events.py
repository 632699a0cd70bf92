"""What ran, as an event of `dp_accounting`: the only place where such events are built.

sampling (what the sampler did) x mechanism (which noise) x adjacency (who is a neighbour) -> event.
A pair without a valid event is refused. Amplification by sampling is claimed in two cases only:

  Poisson                           x Gaussian, Laplace
  fixed size without replacement    x Gaussian, one client replaced by another

Everything else is accounted as if a client took part whenever it may. That is sound because the
draw does not depend on the clients' data: divergences are jointly quasi-convex, so the mixture
over cohorts is no worse than its worst cohort.

Adjacencies:
  'add_or_remove_one': a client more or less; the sum moves by C.
  'replace_one': one client's data become another's; the sum moves by 2 C.
  'replace_special': one client's contributions become zero, its place in the draw stays; C.
"""

import functools
import math
from typing import Any

from fedjax_mem.core import Draws, IncompatibleStages, validate
from fedjax_mem.core.mechanism import Mechanism

ADJACENCIES = ('add_or_remove_one', 'replace_one', 'replace_special')
ACCOUNTANTS = ('rdp', 'pld')
SCHEMES = ('poisson', 'without_replacement', 'cyclic')

# Noise whose amplification by Poisson sampling is known.
_SAMPLED = ('gaussian', 'laplace')
# Order at which the best of several bounds that are lines in the order is chosen.
_TYPICAL_ORDER = 16
# Of a discrete Gaussian, in steps of the grid: from there on sums of them are accounted as such.
_LEAST_VARIANCE = 0.25


def refuse(sampling: Draws, mechanism: Mechanism, reason: str) -> IncompatibleStages:
  """Returns the error that says why a sampler and a mechanism cannot be accounted together."""
  return IncompatibleStages(
    f'sampling {sampling.scheme!r} and mechanism {mechanism.name!r} ({mechanism.trust}, by '
    f'{mechanism.unit}) cannot be accounted together: {reason}.'
  )


def check(sampling: Draws, mechanism: Mechanism) -> None:
  """Raises unless the sampling is sound by itself and may be paired with the mechanism.

  Raises:
    ValueError: a size is out of range (a rate over 1, an empty cohort).
    IncompatibleStages: the draw depends on data, or correlated noise assumes a rarer one.
  """
  validate.integer(population=sampling.population)
  validate.positive(expected=sampling.expected)
  if sampling.expected > sampling.population * (1 + 1e-12):
    raise ValueError(
      f'expected must be at most the population of {sampling.population} (a sampling rate of at '
      f'most 1), got {sampling.expected!r}.'
    )
  validate.integer(capacity=sampling.capacity)
  validate.integer(min_sep=sampling.min_sep)
  if sampling.scheme == 'data_dependent':
    raise refuse(sampling, mechanism, 'who is selected would itself reveal data')
  if sampling.scheme in SCHEMES[1:] and sampling.expected != int(sampling.expected):
    raise ValueError(f'expected must be a whole number, got {sampling.expected!r}.')
  _check_participation(sampling, mechanism)


def _check_participation(sampling: Draws, mechanism: Mechanism) -> None:
  """Raises if correlated noise assumes fewer participations than the sampler allows."""
  separation = sampling.min_sep
  if mechanism.name == 'matrix' and mechanism.separation > separation:
    raise refuse(
      sampling,
      mechanism,
      f'its sensitivities assume {mechanism.separation} rounds between two participations of a '
      f'client, the sampler keeps {separation}',
    )


def _keeps_apart(sampling: Draws) -> bool:
  """Whether the draw of a round depends on the rounds before."""
  return sampling.scheme == 'cyclic' or sampling.min_sep > 1


def default_adjacency(sampling: Draws, mechanism: Mechanism) -> str:
  """Returns the adjacency that goes with the pair where the user names none."""
  if mechanism.trust == 'local' and mechanism.unit == 'client':
    return 'replace_one'
  if mechanism.name in ('tree', 'matrix') or _keeps_apart(sampling):
    return 'replace_special'
  if sampling.scheme == 'poisson':
    # Where nothing is claimed of the draw, a place in it is not worth hiding.
    return 'add_or_remove_one' if mechanism.name in _SAMPLED else 'replace_special'
  return 'replace_one'


def check_adjacency(sampling: Draws, mechanism: Mechanism, adjacency: str) -> None:
  """Raises `IncompatibleStages` where a client more or less would change who else is drawn."""
  validate.one_of(ADJACENCIES, adjacency=adjacency)
  if adjacency != 'add_or_remove_one':
    return
  if mechanism.trust == 'local' and mechanism.unit == 'client':
    reason = 'a client cannot hide that it took part, only what it holds'
  elif mechanism.carried:
    reason = 'a client less is a share of the noise less'
  elif sampling.scheme == 'without_replacement':
    reason = 'a cohort of fixed size without a client holds another in its place'
  elif _keeps_apart(sampling):
    reason = 'a client more or less moves the turns of all others'
  elif sampling.scheme != 'poisson':
    reason = 'nobody states what the draw makes of a client more or less'
  else:
    return
  raise refuse(
    sampling,
    mechanism,
    f"adjacency 'add_or_remove_one' does not hold, as {reason}; use 'replace_one' or "
    "'replace_special'",
  )


def amplified(sampling: Draws, mechanism: Mechanism, adjacency: str) -> bool:
  """Returns whether the event claims amplification by sampling."""
  if (mechanism.trust == 'local' and mechanism.unit == 'client') or _keeps_apart(sampling):
    return False
  if sampling.scheme == 'poisson':
    return mechanism.name in _SAMPLED
  return (sampling.scheme, mechanism.name, adjacency) == (
    'without_replacement',
    'gaussian',
    'replace_one',
  )


def horizon(sampling: Draws, mechanism: Mechanism) -> int | None:
  """Returns the most rounds that correlated noise covers, or None where there is no end."""
  if mechanism.name == 'matrix':
    return len(mechanism.sensitivities)
  if mechanism.name == 'tree' and mechanism.restart is None:
    return sampling.min_sep
  return None


def participations(sampling: Draws, rounds: int) -> int:
  """Returns in how many of `rounds` rounds one client can take part at the most."""
  return math.ceil(rounds / sampling.min_sep)


def build(
  sampling: Draws,
  mechanism: Mechanism,
  adjacency: str,
  accountant: str,
  rounds: int,
  truncated: bool = False,
) -> tuple[Any, int]:
  """Returns the event of one participation and how often it is composed in `rounds` rounds.

  Args:
    sampling: what the sampler did.
    mechanism: which noise was added.
    adjacency: one of `ADJACENCIES`.
    accountant: 'rdp' or 'pld'. They differ under 'replace_one', where a sum moves by 2 C: RDP takes
      the multiplier relative to that, sigma / (2 C); PLD doubles a Gaussian's by itself.
    rounds: rounds that ran, at least 1.
    truncated: account a Poisson cohort cut to its capacity as such, instead of as a Poisson cohort
      whose overflow is added to delta.

  Raises:
    IncompatibleStages: no valid event.
  """
  check(sampling, mechanism)
  check_adjacency(sampling, mechanism, adjacency)
  count = participations(sampling, rounds)
  doubles = adjacency == 'replace_one' and not (
    accountant == 'pld' and mechanism.name in ('gaussian', 'matrix')
  )
  sensitivity = 2.0 if doubles else 1.0
  multiplier = mechanism.noise_multiplier / sensitivity
  if mechanism.name == 'matrix':
    return _matrix(sampling, mechanism, multiplier, rounds), 1
  if mechanism.name == 'tree':
    return _tree(sampling, mechanism, multiplier, rounds), count
  if mechanism.name in ('discrete_gaussian', 'skellam'):
    return _event('zcdp', *concentrated(mechanism, sensitivity)), count
  if not amplified(sampling, mechanism, adjacency):
    return _event(mechanism.name, multiplier), count
  if truncated and mechanism.name == 'gaussian':
    return _truncated(sampling, multiplier), count
  return _sampled(sampling, _event(mechanism.name, multiplier)), count


@functools.lru_cache(maxsize=4096)
def _event(name: str, *args: Any) -> Any:
  """Returns an event without sampling."""
  import dp_accounting

  kinds = {
    'gaussian': dp_accounting.GaussianDpEvent,
    'laplace': dp_accounting.LaplaceDpEvent,
    'tree': dp_accounting.SingleEpochTreeAggregationDpEvent,
    'zcdp': dp_accounting.ZCDpEvent,
  }
  return kinds[name](*args)


def _matrix(sampling: Draws, mechanism: Mechanism, multiplier: float, rounds: int) -> Any:
  """Returns one Gaussian event for all rounds: the noise is drawn once, for the whole matrix."""
  if rounds > len(mechanism.sensitivities):
    raise refuse(
      sampling,
      mechanism,
      f'its matrix covers {len(mechanism.sensitivities)} rounds, and {rounds} are asked for',
    )
  return _event('gaussian', multiplier / mechanism.sensitivities[rounds - 1])


def _tree(sampling: Draws, mechanism: Mechanism, multiplier: float, rounds: int) -> Any:
  """Returns the event of one tree, in which a client takes part once."""
  steps = min(mechanism.restart or rounds, rounds)
  separation = sampling.min_sep
  if steps > separation:
    raise refuse(
      sampling,
      mechanism,
      f'a client may take part once in a tree, here of {steps} rounds, and the sampler keeps '
      f'{separation} between two participations; restart the tree every {separation} rounds',
    )
  return _event('tree', multiplier, steps)


def _sampled(sampling: Draws, event: Any) -> Any:
  import dp_accounting

  if sampling.scheme == 'poisson':
    rate = min(1.0, sampling.expected / sampling.population)
    return dp_accounting.PoissonSampledDpEvent(rate, event)
  return dp_accounting.SampledWithoutReplacementDpEvent(
    sampling.population, int(sampling.expected), event
  )


def _truncated(sampling: Draws, multiplier: float) -> Any:
  import dp_accounting

  return dp_accounting.TruncatedSubsampledGaussianDpEvent(
    sampling.population,
    min(1.0, sampling.expected / sampling.population),
    sampling.capacity,
    multiplier,
  )


def concentrated(mechanism: Mechanism, sensitivity: float = 1.0) -> tuple[float, float]:
  """Returns (rho, xi): the Renyi divergence of order a of discrete noise is at most xi + rho a.

  Of the bounds that hold, the one that is lowest at a typical order. Skellam's hold for whole
  orders only. Of a sum of discrete Gaussians, that of one share alone always holds: the others are
  post-processing.

  Args:
    mechanism: 'discrete_gaussian' or 'skellam'.
    sensitivity: how far the sum moves, in norm bounds: 1 or 2.

  Reference: discrete Gaussian: Canonne, Kamath, Steinke (2020), arXiv 2004.00010, Theorem 4 and its
  multivariate form; sums of them: Kairouz, Liu, Steinke (2021), arXiv 2102.06387, Proposition 14;
  Skellam: Agarwal, Kairouz, Liu (2021), arXiv 2110.04995, Corollary 4.1.
  """
  ratio = sensitivity / mechanism.noise_multiplier
  if mechanism.name == 'discrete_gaussian':
    tau, dimension = _sum_penalty(mechanism), mechanism.dimension or 1
    lines = [(mechanism.shares * ratio**2 / 2, 0.0)]
    if tau is not None:
      lines += [
        (ratio**2 / 2, tau * dimension),
        ((ratio + math.sqrt(dimension) * tau) ** 2 / 2, 0.0),
      ]
  else:
    base, dimension = mechanism.l2 or 1.0, mechanism.dimension or 1
    one = mechanism.l1 or min(math.sqrt(dimension) * base, base**2)
    variance = (mechanism.noise_multiplier * base) ** 2
    l1, l2 = sensitivity * one, sensitivity * base
    rho = l2**2 / (2 * variance)
    lines = [
      (rho * (1 + 1 / variance), max(0.0, (6 * l1 - l2**2) / (4 * variance**2))),
      (rho, 3 * l1 / (2 * variance)),
    ]
  return min(lines, key=lambda line: line[0] * _TYPICAL_ORDER + line[1])


def _sum_penalty(mechanism: Mechanism) -> float | None:
  """Returns tau: how far a sum of discrete Gaussians is from one (0 for a single share).

  None where a share is too small, sigma < 1/2 in steps of the grid, for what is proved.
  """
  if mechanism.shares == 1:
    return 0.0
  variance = (mechanism.noise_multiplier * (mechanism.l2 or 1.0)) ** 2 / mechanism.shares
  if variance < _LEAST_VARIANCE:
    return None
  return 10 * sum(
    math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, mechanism.shares)
  )
