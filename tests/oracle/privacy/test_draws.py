"""Who is drawn, and who is in the sum, against the law that is accounted for.

Each client sends a vector that names it, so that the sum of a round says exactly whose messages are
in it, with drop-out and availability. For six clients every set has its own frequency: a chi-square
test compares all 64 with the exact law; exact binomial tests compare each client, each pair of
clients, and each client in two rounds in a row. `ALARM` is the probability of any alarm in the
whole grid if all laws are kept (Bonferroni's bound). Seeds are fixed.
"""

import functools
import itertools
import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fedjax_mem as fm
from fedjax_mem.core import Draws, Layer, Message, Stage, Trains, stack_clients
from fedjax_mem.stages.algorithm.dp_sgd import poisson_batch
from fedjax_mem.stages.select import (
  diurnal,
  dropout,
  markov,
  min_separation,
  poisson,
  round_robin,
  stragglers,
  uniform,
)
from fedjax_mem.stages.weigh import equal
from tests.reference import evidence

pytestmark = pytest.mark.slow
N = 6
SETS = np.array(list(itertools.product((0, 1), repeat=N)))  # [64, N]
ALARM, LIMIT = 1e-3, 400  # of the whole grid, of at most so many tests
LEVEL = ALARM / LIMIT
SIZE, MOST = 4000, 8000  # rounds: small grid, whole grid


def algorithm() -> Layer:
  """Returns the algorithm whose clients send who they are; params are the sums of all rounds."""

  def client(ctx, task, state):
    return Message(jax.nn.one_hot(ctx.client.id, N), jnp.float32(1), {}), state, {}

  def server(ctx, message, state):
    return ctx.params.at[ctx.round].set(message.update), state, {}

  return Layer('algorithm', client=Stage(client, facts=(Trains(),)), server=Stage(server))


class Seen(NamedTuple):
  """What a run has shown.

  Attributes:
    drawn: [R, N] whom the layer that draws chose, whatever left them out later.
    summed: [R, N] whose messages are in the sum.
    available: [N] probability of being available in a round; each independent of all else.
    law: what is accounted for.
  """

  drawn: np.ndarray
  summed: np.ndarray
  available: np.ndarray
  law: Draws


def play(case: 'Case', rounds: int, seed: int = 5) -> Seen:
  """Runs a sampler under what leaves clients out."""
  pop = stack_clients([{'x': np.zeros(1, np.float32)}] * N)
  layers = algorithm(), *case.layers(), equal(1.0)
  start = jnp.zeros((rounds, N))
  sim = fm.simulate(layers, start, pop, seed=seed, max_rounds=rounds)
  state = sim.init(start)
  share = case.share
  if share is None:  # a client's own, which its phase gives
    phase = np.asarray(state.servers['available'], float)
    share = 0.2 + 0.7 * (1 + np.sin(2 * np.pi * phase)) / 2
  draws = sim.setting.layers.draws
  ids = np.asarray(sim.cohorts(state, rounds)) if not case.before else None
  summed = np.asarray(sim.run(state, rounds)[0].params).round().astype(int)
  drawn = summed if ids is None else np.stack([np.isin(np.arange(N), row) for row in ids])
  return Seen(drawn.astype(int), summed, np.broadcast_to(share, N), draws)


class Case(NamedTuple):
  """A sampler, and a layer that leaves clients out.

  Attributes:
    name: in words.
    sampler: makes the layer that draws.
    without: makes the layer that leaves clients out, or None.
    share: the probability that it leaves a client in; None: one of each client.
    before: whether that layer comes before the draw: then only the sum shows who was drawn.
  """

  name: str
  sampler: Any
  without: Any = None
  share: Any = 1.0
  before: bool = False

  def layers(self) -> tuple[Layer, ...]:
    """Returns the layers that select, in order."""
    made = [self.sampler()] + ([self.without()] if self.without else [])
    return tuple(made[::-1] if self.before else made)


SAMPLERS = {
  'poisson(0.4)': lambda: poisson(N, 0.4, N),
  'poisson(0.4), cut to 3': lambda: poisson(N, 0.4, 3),
  'poisson(0.9)': lambda: poisson(N, 0.9, N),
  'uniform(3)': lambda: uniform(N, 3),
  'uniform(1)': lambda: uniform(N, 1),
  'min_separation(2, 3)': lambda: min_separation(N, 2, 3),
  'min_separation(3, 1)': lambda: min_separation(N, 3, 1),
  'min_separation(1, 4)': lambda: min_separation(N, 1, 4),
  'round_robin(2)': lambda: round_robin(N, 2),
  'round_robin(4)': lambda: round_robin(N, 4),
}
# (makes the layer, share that it leaves in). An online client of this chain is online in the next
# round with probability 0.6, and so is one that is offline: rounds are independent of each other.
FILTERS = {
  'all arrive': (None, 1.0),
  'drop-out of 0.3': (lambda: dropout(0.3), 0.7),
  'availability 0.6 (markov)': (lambda: markov(N, leave=0.4, join=0.6), 0.6),
  'availability by client (diurnal)': (lambda: diurnal(N, 0.2, 0.9, period=1), None),
  'a deadline, jitter 1': (
    lambda: stragglers(N, [1.0] * N, deadline=1.0, jitter=1.0, looks='nothing'),
    0.5,
  ),
}
CASES = [Case(f'{s}, {f}', make, *FILTERS[f]) for s, make in SAMPLERS.items() for f in FILTERS] + [
  # The only sampler before which a claim lets clients be left out.
  Case(
    f'{s}, availability 0.6 before the draw',
    SAMPLERS[s],
    lambda: markov(N, leave=0.4, join=0.6, before_draw=True),
    0.6,
    True,
  )
  for s in ('poisson(0.4)', 'poisson(0.9)')
]
# Each filter once, each kind of sampler once.
SMALL = [CASES[i] for i in (4, 8, 17, 26, 46, -1)]


def law_of_sets(law: Draws) -> np.ndarray:
  """Returns the probability of each set of clients under the law that is accounted for, [64]."""
  sizes, rate = SETS.sum(1), law.expected / law.population
  if law.scheme == 'without_replacement':
    return (sizes == law.expected) / math.comb(N, int(law.expected))
  whole = stats.binom(N, rate)
  # A cohort that does not fit is cut to its rows, uniformly.
  cut = np.where(sizes == law.capacity, whole.sf(law.capacity - 1), whole.pmf(sizes))
  return np.where(sizes > law.capacity, 0.0, cut) / np.array([math.comb(N, k) for k in sizes])


def thinned(chance: np.ndarray, available: np.ndarray) -> np.ndarray:
  """Returns the law of who is left of a drawn set if each is available by itself, [64]."""
  left = np.zeros(len(SETS))
  for drawn, p in zip(SETS, chance, strict=True):
    stays = np.where(SETS == 1, drawn * available, 1 - drawn * available).prod(1)
    left += p * stays
  return left


def codes(sets: np.ndarray) -> np.ndarray:
  """Returns the row of `SETS` that each of sets [R, N] is."""
  return sets @ (2 ** np.arange(N)[::-1])


def chi_square(sets: np.ndarray, law: np.ndarray) -> float:
  """Returns the p-value of the frequencies of sets; those that are rare are counted together."""
  counts, wanted = np.bincount(codes(sets), minlength=len(SETS)), law * len(sets)
  if counts[law == 0].any():
    return 0.0
  big = wanted >= 5
  observed, expected = [*counts[big]], [*wanted[big]]
  if wanted[~big].sum() >= 1:
    observed, expected = [*observed, counts[~big].sum()], [*expected, wanted[~big].sum()]
  expected = np.array(expected) * sum(observed) / sum(expected)
  return float(stats.chisquare(observed, expected).pvalue) if len(expected) > 1 else 1.0


def binomial(hits: Any, tries: int, chance: Any) -> float:
  """Returns the p-value of counts of independent tries, times their number (Bonferroni)."""
  pairs = list(zip(np.ravel(hits), np.ravel(np.broadcast_to(chance, np.shape(hits))), strict=True))
  least = min(stats.binomtest(int(h), tries, min(1.0, float(p))).pvalue for h, p in pairs)
  return min(1.0, len(pairs) * least)


def pairs(x: np.ndarray) -> np.ndarray:
  """Returns the entries of [N, N] for two different clients."""
  return x[np.triu_indices(N, 1)]


def p_values(seen: Seen) -> dict[str, float]:
  """Returns the p-values of a sampler whose rounds are independent, by what is compared."""
  rounds, chance = len(seen.summed), law_of_sets(seen.law)
  found = {}
  for who, sets, law in (
    ('drawn', seen.drawn, chance),
    ('summed', seen.summed, thinned(chance, seen.available)),
  ):
    one, two = law @ SETS, (SETS * law[:, None]).T @ SETS
    found[f'{who}: sets'] = chi_square(sets, law)
    found[f'{who}: clients'] = binomial(sets.sum(0), rounds, one)
    found[f'{who}: pairs'] = binomial(pairs(sets.T @ sets), rounds, pairs(two))
    again = (sets[0::2] * sets[1::2]).sum(0)
    found[f'{who}: two rounds'] = binomial(again, rounds // 2, one**2)
  return found


def before_draw(seen: Seen) -> Seen:
  """Returns what was seen of a draw among the available: who was drawn is who is in the sum."""
  return seen._replace(drawn=seen.summed)


def gaps(sets: np.ndarray) -> int:
  """Returns the fewest rounds from one participation of a client to its next."""
  return min(int(np.diff(np.flatnonzero(x)).min(initial=10**9)) for x in sets.T)


def independent(law: Draws) -> bool:
  """Returns whether the accountant is told that rounds are independent draws."""
  return law.min_sep == 1 and law.scheme in ('poisson', 'without_replacement')


@functools.cache
def checked(case: Case, rounds: int) -> dict[str, Any]:
  """Returns what a case shows: p-values of its law, or the separation that it keeps."""
  seen = play(case, rounds)
  assert (seen.summed <= seen.drawn).all(), 'a client is in the sum that was not drawn'
  assert seen.drawn.sum(1).max() <= seen.law.capacity
  found: dict[str, Any] = {'law': seen.law, 'gap': gaps(seen.drawn)}
  # What is accounted for: ceil(R / min_sep) participations of a client in any R rounds.
  found['most'] = int(seen.drawn.sum(0).max())
  if case.before:
    whole = p_values(before_draw(seen))
    return {**found, 'p': {k: v for k, v in whole.items() if k.startswith('summed')}}
  if independent(seen.law):
    return {**found, 'p': p_values(seen)}
  # Given who was drawn, each arrives by itself: the counts of those who do are binomial.
  arrived = [
    stats.binomtest(int(s.sum()), int(d.sum()), float(p)).pvalue
    for s, d, p in zip(seen.summed.T, seen.drawn.T, seen.available, strict=True)
  ]
  return {**found, 'p': {'summed, of those drawn: clients': min(1.0, N * min(arrived))}}


@pytest.mark.parametrize('case', SMALL, ids=lambda case: case.name)
def test_the_law_that_is_accounted_for_is_the_one_that_is_run(case):
  found = checked(case, SIZE)
  assert min(found['p'].values()) > LEVEL, found
  assert found['gap'] >= found['law'].min_sep
  assert found['most'] <= math.ceil(SIZE / found['law'].min_sep)


BATCHES = ((0.3, 8), (0.3, 3), (0.8, 8))


def batches(rate: float, rows: int, draws: int) -> float:
  """Returns the least p-value of the batches of DP-SGD on six examples and two rows of padding."""
  data = SimpleNamespace(capacity=N + 2, count=jnp.int32(N))
  draw = jax.jit(jax.vmap(lambda key: poisson_batch(key, data, rate, rows)))
  place, mask, cut = map(np.asarray, draw(jax.random.split(jax.random.key(2), draws)))
  assert place[mask].max() < N  # no padding is ever taken
  sets = np.stack([(np.where(mask, place, -1) == i).any(1) for i in range(N)], 1).astype(int)
  law = Draws('poisson', N, rate * N, rows)
  everyone = Seen(sets, sets, np.ones(N), law)
  overflow = stats.binom(N, rate).sf(rows)
  found = [*p_values(everyone).values()]
  if overflow > 0:
    found.append(binomial([cut.sum()], draws, overflow))
  return min(found)


@pytest.mark.parametrize('rate, rows', BATCHES)
def test_batches_of_dp_sgd_are_poisson(rate, rows):
  assert batches(rate, rows, SIZE) > LEVEL


def test_laws_that_are_not_the_accounted_ones_are_found():
  """A cohort of fixed size called Poisson, an order that repeats, a bias of a tenth."""
  seen = play(Case('', SAMPLERS['uniform(3)']), SIZE)
  as_poisson = seen._replace(law=Draws('poisson', N, 3, N))
  assert p_values(as_poisson)['drawn: sets'] < LEVEL
  turns = play(Case('', SAMPLERS['round_robin(2)']), SIZE)
  as_uniform = turns._replace(law=Draws('without_replacement', N, 2, 2))
  assert p_values(as_uniform)['drawn: two rounds'] < LEVEL
  rng = np.random.default_rng(0)
  biased = (rng.random((SIZE, N)) < np.array([0.4] * 5 + [0.44])).astype(int)
  law = Draws('poisson', N, 0.4 * N, N)
  assert p_values(Seen(biased, biased, np.ones(N), law))['drawn: clients'] < LEVEL


def rows(full: bool) -> list[evidence.Row]:
  rounds, found = (MOST if full else SIZE), []
  for case in CASES if full else SMALL:
    seen = checked(case, rounds)
    worst = min(seen['p'], key=seen['p'].get)
    found.append(
      {
        'sampler, and who is left out': case.name,
        'rounds': rounds,
        'tests': len(seen['p']),
        'least p-value': seen['p'][worst],
        'of': worst,
        'min_sep stated, kept': f'{seen["law"].min_sep}, {seen["gap"]}',
        'most participations, accounted': f'{seen["most"]}, '
        f'{math.ceil(rounds / seen["law"].min_sep)}',
      }
    )
  for rate, number in BATCHES:
    name = f'batches of DP-SGD, rate {rate}, {number} rows'
    least = batches(rate, number, rounds)
    found.append(dict(zip(found[0], (name, rounds, 8, least, 'any', '1, 1', '–'), strict=True)))
  assert sum(x['tests'] for x in found) <= LIMIT
  return found


if __name__ == '__main__':
  evidence.main('draws', rows)
