"""Epsilon as stated, against dp-accounting called directly, and against exact laws of one value.

No event here comes from the package: each is written anew from the mechanism's definition. A stated
epsilon has to be that of dp-accounting's accountant for the event (within `SAME`), and at least a
lower bound that holds for any correct statement: the optimistic privacy loss distribution, of the
exact law where noise is on integers, or the closed form of a Gaussian.
"""

import functools
import itertools
import logging
import math
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import dp_accounting as dp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dp_accounting import pld, rdp
from scipy import special, stats

from fedjax_mem import account
from fedjax_mem.account import LocalLedger
from fedjax_mem.core import Bound, Draws, Mechanism, Noises
from fedjax_mem.mechanisms import DiscreteGaussian, Gaussian, Laplace, Matrix, Skellam, Tree
from fedjax_mem.mechanisms.matrix import banded, blt
from fedjax_mem.stages.algorithm import dp_sgd
from tests.reference import evidence

pytestmark = [
  pytest.mark.slow,
  pytest.mark.standard_promotion,
  pytest.mark.filterwarnings('ignore:delta should be well below'),
]
SAME = 1e-3  # grids of privacy loss distributions may differ
BELOW = 1e-6  # relative, for what floats round
N = 1000
ADD, ONE, SPECIAL = 'add_or_remove_one', 'replace_one', 'replace_special'
# Orders that do not converge, and that optimistic distributions have a grid of another kind.
for name in ('absl', 'root'):
  logging.getLogger(name).setLevel(logging.ERROR)
PLDS = pld.privacy_loss_distribution


class Case(NamedTuple):
  """A statement, and what it is compared with.

  Attributes:
    setting: in words.
    stated: epsilon as the package states it.
    direct: the same by dp-accounting, of an event that is written here.
    least: no correct statement is below this.
  """

  setting: str
  stated: float
  direct: float
  least: float


def by_rdp(event: Any, count: int, delta: float, adjacency: str, orders: Any = None) -> float:
  relation = dp.NeighboringRelation[adjacency.upper()]
  return rdp.RdpAccountant(orders, relation).compose(event, count).get_epsilon(delta)


def of_loss(loss: Any, count: int, delta: float) -> float:
  return loss.self_compose(count).get_epsilon_for_delta(delta)


def gaussian_least(multiplier: float, delta: float) -> float:
  """Returns epsilon of one Gaussian release, exactly (Balle and Wang 2018, by bisection)."""

  def spent(epsilon: float) -> float:
    a, b = 1 / (2 * multiplier), epsilon * multiplier
    return stats.norm.cdf(a - b) - math.exp(epsilon + stats.norm.logcdf(-a - b))

  if spent(0.0) <= delta:
    return 0.0
  low, high = 0.0, 1.0
  while spent(high) > delta:
    low, high = high, 2 * high
  for _ in range(60):
    middle = (low + high) / 2
    low, high = (middle, high) if spent(middle) > delta else (low, middle)
  return low


def stated(draws: Draws | None, noise: Mechanism, rounds: int, delta: float, **how: Any) -> float:
  return account.epsilon(draws, noise, rounds, delta, **how).epsilon


def product(full: bool, **grid: Any) -> Iterator[tuple[Any, ...]]:
  """Yields the settings of a grid; of the small one the first of each value, then the second."""
  firsts = [x[:2] for x in grid.values()]
  return itertools.product(*grid.values()) if full else zip(*firsts, strict=False)


def gaussian(full: bool) -> Iterator[Case]:
  grid = {'z': (0.8, 2.0, 6.0), 'rate': (0.05, 0.01, 0.3), 'rounds': (20, 200, 1)}
  delta = 1e-5
  for z, rate, rounds in product(full, **grid):
    draws = Draws('poisson', N, rate * N, N)
    event = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(z))
    for adjacency in (ADD, ONE):
      relation = dp.NeighboringRelation[adjacency.upper()]
      make = functools.partial(
        PLDS.from_gaussian_mechanism, z, sampling_prob=rate, neighboring_relation=relation
      )
      least = of_loss(make(pessimistic_estimate=False), rounds, delta)
      name = f'z = {z}, rate = {rate}, {rounds} rounds, {adjacency}'
      found = stated(draws, Gaussian(z), rounds, delta, adjacency=adjacency, accountant='pld')
      yield Case(f'PLD, {name}', found, of_loss(make(), rounds, delta), least)
      if adjacency == ADD:
        found = stated(draws, Gaussian(z), rounds, delta, accountant='rdp')
        yield Case(f'RDP, {name}', found, by_rdp(event, rounds, delta, ADD), least)
    fixed = Draws('without_replacement', N, int(rate * N), int(rate * N))
    event = dp.SampledWithoutReplacementDpEvent(N, int(rate * N), dp.GaussianDpEvent(z / 2))
    found = stated(fixed, Gaussian(z), rounds, delta, adjacency=ONE, accountant='rdp')
    plain = by_rdp(dp.GaussianDpEvent(z / 2), rounds, delta, ONE)
    direct = min(by_rdp(event, rounds, delta, ONE), plain)
    # Where all others send zero, the sum is that of Poisson sampling: `least` of ONE, from above.
    yield Case(f'fixed size, z = {z}, rate = {rate}, {rounds} rounds', found, direct, least)


def laplace(full: bool) -> Iterator[Case]:
  grid = {'z': (2.0, 20.0, 0.7), 'rounds': (1, 30, 300), 'delta': (1e-5, 1e-8)}
  for z, rounds, delta in product(full, **grid):
    for adjacency, moves in ((SPECIAL, 1), (ONE, 2)):
      scale = z / moves
      direct = by_rdp(dp.LaplaceDpEvent(scale), rounds, delta, adjacency)
      make = functools.partial(PLDS.from_laplace_mechanism, scale)
      least = of_loss(make(pessimistic_estimate=False), rounds, delta)
      found = stated(None, Laplace(z), rounds, delta, adjacency=adjacency, accountant='rdp')
      name = f'z = {z}, {rounds} rounds, delta = {delta:g}'
      # Pure epsilon holds for every delta, and is the lower bound where few rounds compose.
      yield Case(f'RDP, {name}, {adjacency}', found, min(direct, rounds / scale), least)
      if adjacency == SPECIAL:
        found = stated(None, Laplace(z), rounds, delta, adjacency=adjacency, accountant='pld')
        yield Case(f'PLD, {name}, {adjacency}', found, of_loss(make(), rounds, delta), least)
    for rate in (0.05, 0.5):
      make = functools.partial(PLDS.from_laplace_mechanism, z, sampling_prob=rate)
      draws = Draws('poisson', N, rate * N, N)
      found = stated(draws, Laplace(z), rounds, delta, accountant='pld')
      least = of_loss(make(pessimistic_estimate=False), rounds, delta)
      yield Case(f'PLD, {name}, rate = {rate}', found, of_loss(make(), rounds, delta), least)


def pmf_discrete(sigma: float, size: int) -> np.ndarray:
  k = np.arange(-size, size + 1)
  mass = np.exp(-((k / sigma) ** 2) / 2)
  return mass / mass.sum()


def pmf_skellam(variance: float, size: int) -> np.ndarray:
  k = np.arange(-size, size + 1)
  return special.ive(np.abs(k), variance)


def integer_least(mass: np.ndarray, shift: int, rounds: int, delta: float) -> float:
  """Returns epsilon of integer noise with these masses when a neighbour shifts it, optimistic."""
  middle = len(mass) // 2
  log = {k - middle: float(np.log(p)) for k, p in enumerate(mass) if p > 1e-300}
  moved = {k + shift: p for k, p in log.items()}
  both = {k for k in log if k in moved}
  loss = PLDS.from_two_probability_mass_functions(
    {k: moved[k] for k in both},
    {k: log[k] for k in both},
    pessimistic_estimate=False,
    value_discretization_interval=1e-3,
    symmetric=True,
  )
  return of_loss(loss, rounds, delta)


def discrete(full: bool) -> Iterator[Case]:
  grid = {'z': (1.5, 4.0, 0.8), 'levels': (4, 32, 256), 'rounds': (1, 20, 200)}
  for (z, levels, rounds), moves in itertools.product(product(full, **grid), (1, 2)):
    adjacency, delta, sigma = (SPECIAL, ONE)[moves - 1], 1e-5, z * levels
    draws = Draws('cyclic', N, 10, 10)
    found = stated(
      draws,
      DiscreteGaussian(z),
      rounds,
      delta,
      adjacency=adjacency,
      accountant='rdp',
      bound=Bound(levels, levels, levels, 1),
    )
    direct = by_rdp(dp.ZCDpEvent((moves / z) ** 2 / 2), rounds, delta, adjacency)
    mass = pmf_discrete(sigma, math.ceil(12 * sigma) + moves * levels)
    least = integer_least(mass, moves * levels, rounds, delta)
    yield Case(f'z = {z}, {levels} levels, {rounds} rounds, {adjacency}', found, direct, least)


def shares_cost(z: float, levels: int, shares: int, dimension: int) -> tuple[float, float]:
  """Returns (rho, xi) of a sum of discrete Gaussian shares (Kairouz et al. 2021, Prop. 14)."""
  variance = (z * levels) ** 2 / shares
  lines = [(shares / z**2 / 2, 0.0)]  # a single share
  if variance >= 0.25:
    tau = 10 * sum(math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, shares))
    lines += [(1 / z**2 / 2, tau * dimension), ((1 / z + math.sqrt(dimension) * tau) ** 2 / 2, 0.0)]
  return min(lines, key=lambda x: 16 * x[0] + x[1])


def discrete_shares(full: bool) -> Iterator[Case]:
  grid = {'z': (2.0, 1.0, 5.0), 'shares': (2, 8, 40), 'levels': (4, 16, 64), 'rounds': (1, 20)}
  for z, shares, levels, rounds in product(full, **grid):
    delta, bound = 1e-5, Bound(levels, levels, levels, 1)
    noise = DiscreteGaussian(z, shares=shares, dimension=1)
    draws = Draws('cyclic', N, 10, 10)
    how = {'adjacency': SPECIAL, 'accountant': 'rdp', 'bound': bound}
    found = stated(draws, noise, rounds, delta, **how)
    cost = dp.ZCDpEvent(*shares_cost(z, levels, shares, 1))
    direct = by_rdp(cost, rounds, delta, SPECIAL)
    part = z * levels / math.sqrt(shares)
    one = pmf_discrete(part, math.ceil(12 * part) + 2)
    size = math.ceil(12 * z * levels) + 2 * levels
    wide = np.zeros(2 ** math.ceil(math.log2(shares * len(one) + 2 * size)))
    wide[: len(one)] = one
    whole = np.fft.irfft(np.fft.rfft(wide) ** shares, len(wide))
    middle = shares * (len(one) // 2)
    reach = min(size, middle)
    mass = whole[middle - reach : middle + reach + 1]
    mass = np.where(mass > 1e-14, mass, 0.0)  # below, the transform leaves rounding errors
    least = integer_least(mass, levels, rounds, delta)
    yield Case(f'z = {z}, {shares} shares, {levels} levels, {rounds} rounds', found, direct, least)


def skellam_cost(z: float, levels: int, dimension: int, moves: int) -> tuple[float, float]:
  """Returns (rho, xi) of Skellam noise (Agarwal et al. 2021, Corollary 4.1)."""
  variance, l2 = (z * levels) ** 2, moves * levels
  l1 = moves * min(math.sqrt(dimension) * levels, levels**2)
  rho = l2**2 / (2 * variance)
  # (a / 2) l2² / mu + min(((2 a - 1) l2² + 6 l1) / (4 mu²), 3 l1 / (2 mu)), mu the variance
  first = rho + l2**2 / (2 * variance**2), (6 * l1 - l2**2) / (4 * variance**2)
  second = rho, 3 * l1 / (2 * variance)
  return min(((first[0], max(0.0, first[1])), second), key=lambda line: 16 * line[0] + line[1])


def skellam(full: bool) -> Iterator[Case]:
  grid = {'z': (1.5, 4.0, 0.8), 'levels': (8, 64, 1), 'rounds': (1, 20, 200), 'd': (1, 10**5)}
  orders = (*range(2, 64), 128, 256, 512, 1024)  # the proof is of integer orders
  for (z, levels, rounds, size), moves in itertools.product(product(full, **grid), (1, 2)):
    adjacency, delta = (SPECIAL, ONE)[moves - 1], 1e-5
    noise = Skellam(z, shares=10, dimension=size)
    bound = Bound(math.inf, levels, levels, 1)
    draws = Draws('cyclic', N, 10, 10)
    how = {'adjacency': adjacency, 'accountant': 'rdp', 'bound': bound}
    found = stated(draws, noise, rounds, delta, **how)
    cost = dp.ZCDpEvent(*skellam_cost(z, levels, size, moves))
    direct = by_rdp(cost, rounds, delta, adjacency, orders)
    sigma = z * levels
    mass = pmf_skellam(sigma**2, math.ceil(12 * sigma) + 40 + moves * levels)
    least = integer_least(mass, moves * levels, rounds, delta)
    name = f'z = {z}, {levels} levels, {rounds} rounds, D = {size}, {adjacency}'
    yield Case(name, found, direct, least)


def nodes_of_a_leaf(rounds: int) -> int:
  """Returns the most nodes of one leaf among the complete subtrees over so many leaves, counted."""
  most = 0
  for leaf in range(rounds):
    heights = range(rounds.bit_length())
    most = max(most, sum((leaf // 2**h + 1) * 2**h <= rounds for h in heights))
  return most


def tree(full: bool) -> Iterator[Case]:
  """Trees, under replacement by nothing: for other neighbours dp-accounting has no event."""
  grid = {'z': (2.0, 8.0, 0.9), 'restart': (8, 13, 1), 'rounds': (8, 40, 3)}
  for z, restart, rounds in product(full, **grid):
    delta, apart = 1e-5, max(8, restart)
    draws = Draws('cyclic', N, N // apart, N // apart, apart)
    steps = min(restart, rounds)
    # Every release of a node in which the client is, in each tree that it can be in.
    trees = math.ceil(rounds / apart)
    direct = by_rdp(dp.SingleEpochTreeAggregationDpEvent(z, steps), trees, delta, SPECIAL)
    least = gaussian_least(z / math.sqrt(trees * nodes_of_a_leaf(steps)), delta)
    name = f'z = {z}, a tree every {restart} rounds, {rounds} rounds, {SPECIAL}'
    how = {'adjacency': SPECIAL, 'accountant': 'rdp'}
    found = stated(draws, Tree(z, restart=restart), rounds, delta, **how)
    yield Case(name, found, direct, least)


def patterns(rounds: int, apart: int) -> Iterator[tuple[int, ...]]:
  """Yields every set of rounds that lie `apart` or more from each other."""
  for bits in range(1, 2**rounds):
    on = [i for i in range(rounds) if bits >> i & 1]
    if all(b - a >= apart for a, b in itertools.pairwise(on)):
      yield tuple(on)


@functools.cache
def strategy_matrix(kind: str, rounds: int, width: int, apart: int) -> tuple[Any, np.ndarray]:
  """Returns (the strategy, C [rounds, rounds]): the inverse of what the noise is multiplied by."""
  found = {'banded': banded, 'blt': blt}[kind](rounds, width, apart)
  state = found.inverse.init_multiply(jax.ShapeDtypeStruct((rounds,), jnp.float32))
  rows = []
  for row in np.eye(rounds, dtype=np.float32):
    with jax.numpy_rank_promotion('allow'):
      out, state = found.inverse.multiply_next(jnp.asarray(row), state)
    rows.append(np.asarray(out, np.float64))
  return found, np.linalg.inv(np.stack(rows))


def matrix(full: bool) -> Iterator[Case]:
  settings = [('banded', 8, 3, 3), ('blt', 8, 2, 2), ('banded', 12, 4, 4), ('blt', 12, 3, 4)]
  for kind, rounds, width, apart in settings if full else settings[:2]:
    found, strategy = strategy_matrix(kind, rounds, width, apart)
    for z, upto, moves in product(full, z=(2.0, 8.0, 0.8), upto=(rounds, 5), moves=(1, 2)):
      # The worst of all participations and of all signs of unit contributions along one direction.
      # Columns are not negative here, so that equal signs are the worst.
      made = strategy[:upto, :upto]
      assert (made > -1e-5).all()
      worst = max(np.linalg.norm(made[:, list(p)].sum(1)) for p in patterns(upto, apart))
      adjacency, delta = (SPECIAL, ONE)[moves - 1], 1e-5
      draws = Draws('cyclic', N, N // apart, N // apart, apart)
      noise = Matrix(
        z,
        sensitivities=tuple(found.sensitivities),
        separation=apart,
        strategy=kind,
        width=width,
      )
      multiplier = z / moves / worst
      name = f'{kind} of {width}, min_sep {apart}, {upto} of {rounds} rounds, z = {z}, {adjacency}'
      stating = stated(draws, noise, upto, delta, adjacency=adjacency, accountant='rdp')
      direct = by_rdp(dp.GaussianDpEvent(multiplier), 1, delta, adjacency)
      least = gaussian_least(multiplier, delta)
      yield Case(f'RDP, {name}', stating, direct, least)
      stating = stated(draws, noise, upto, delta, adjacency=adjacency, accountant='pld')
      yield Case(f'PLD, {name}', stating, least, least)


def local_epochs(full: bool) -> Iterator[Case]:
  """DP-SGD on a client of 200 examples: steps of whole epochs, times its participations."""
  grid = {'z': (1.1, 3.0, 0.7), 'rate': (0.1, 0.02), 'epochs': (1, 3), 'taken': (1, 5)}
  for z, rate, epochs, taken in product(full, **grid):
    examples, delta, steps = 200, 1e-5, round(epochs / rate)
    layer = dp_sgd(
      lambda params, batch, key: batch['x'],
      learning_rate=0.1,
      batch_size=int(rate * examples),
      steps=steps,
      rate=rate,
      l2_clip_norm=1.0,
      noise_multiplier=z,
      capacity=examples,  # no batch is cut, whatever epsilon
    )
    fact = layer.fact(Noises)
    loss = functools.partial(PLDS.from_gaussian_mechanism, z, sampling_prob=rate)
    least = of_loss(loss(pessimistic_estimate=False), taken * steps, delta)
    event = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(z))
    direct = {
      'rdp': by_rdp(event, taken * steps, delta, ADD),
      'pld': of_loss(loss(), taken * steps, delta),
    }
    for name in ('rdp', 'pld'):
      book = LocalLedger.plan(
        'algorithm',
        fact.mechanism,
        num_clients=3,
        rounds=taken,
        delta=delta,
        steps=fact.steps,
        batches=fact.draws(examples),
        accountant=name,
      )
      for number in range(1, taken + 1):
        book.charge(number, [0, 1] if number == 1 else [0])
      said = book.guarantee()
      words = f'{name.upper()}, z = {z}, rate = {rate}, {epochs} epochs, {taken} participations'
      yield Case(words, said.epsilon, direct[name], least)


FAMILIES = {
  'Gaussian on samples': gaussian,
  'Laplace': laplace,
  'discrete Gaussian': discrete,
  'discrete Gaussian in shares': discrete_shares,
  'Skellam in shares': skellam,
  'tree': tree,
  'matrix': matrix,
  'DP-SGD with local epochs': local_epochs,
}


def apart(case: Case) -> float:
  """Returns how far a statement is from the direct one, relative (absolute below epsilon 0.01)."""
  return (case.stated - case.direct) / max(case.direct, 0.01)


def over_least(case: Case) -> float:
  """Returns a statement over its lower bound, where that says something."""
  return case.stated / case.least if case.least > 1e-3 else math.inf


@pytest.mark.parametrize('family', FAMILIES)
def test_epsilon_is_that_of_an_event_written_anew_and_no_less_than_any_correct_one(family):
  cases = list(FAMILIES[family](False))
  assert cases
  for case in cases:
    assert abs(apart(case)) <= SAME, case
    assert case.stated >= case.least * (1 - BELOW), case


def rows(full: bool) -> list[evidence.Row]:
  found = []
  for family, make in FAMILIES.items():
    cases = list(make(full))
    far = max(cases, key=lambda x: abs(apart(x)))
    low = min(cases, key=over_least)
    found.append(
      {
        'mechanism': family,
        'settings': len(cases),
        'ε from … to': f'{min(x.stated for x in cases):.3g} … {max(x.stated for x in cases):.4g}',
        'stated / direct - 1, farthest from 0': f'{apart(far):+.1e}',
        'least stated / lower bound': round(over_least(low), 4),
        'at': low.setting,
        'statements below their lower bound': sum(x.stated < x.least * (1 - BELOW) for x in cases),
      }
    )
    print(f'{family}: {far}', file=sys.stderr)
  return found


if __name__ == '__main__':
  evidence.main('epsilon', rows)
