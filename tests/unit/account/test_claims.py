"""Claims: trajectories end at epsilon, never fall and are bounds; what overflows is counted."""

import dataclasses

import numpy as np
import pytest

from fedjax_mem.account import accountant, events
from fedjax_mem.account.claims import Claim
from fedjax_mem.core import Draws
from fedjax_mem.mechanisms import DiscreteGaussian, Gaussian, Laplace, Matrix, Tree

DELTA = 1e-5


def poisson_sampling(population, expected, capacity=None):
  return Draws('poisson', population, expected, capacity or population)


@dataclasses.dataclass(frozen=True)
class Twice(Gaussian):
  """Says that it releases twice a round."""

  def event(self, draws, adjacency, accountant, rounds, bound=None, truncated=False):
    """Returns the event of `rounds` rounds."""
    import dp_accounting

    one = super().event(draws, adjacency, accountant, rounds, bound, truncated)
    return dp_accounting.SelfComposedDpEvent(one.event, 2 * one.count)


@pytest.mark.parametrize('kind', ['rdp', 'pld'])
def test_the_trajectory_is_that_of_a_mechanisms_own_event(kind):
  made = accountant.claim(
    poisson_sampling(1000, 10), Twice(1.3), rounds=6, delta=DELTA, accountant=kind
  )
  path = made.trajectory(6, DELTA).epsilon
  assert path[-1] == pytest.approx(made.epsilon(6, DELTA), rel=1e-9)
  once = accountant.claim(
    poisson_sampling(1000, 10), Gaussian(1.3), rounds=12, delta=DELTA, accountant=kind
  )
  assert path[2] == pytest.approx(once.epsilon(6, DELTA), rel=1e-3)


@pytest.mark.first(3)
@pytest.mark.parametrize(
  'sampling, mechanism, kind',
  [
    (poisson_sampling(1000, 50), Gaussian(1.0), 'rdp'),
    (Draws('cyclic', 100, 10, 10, 10), Tree(2.0, restart=10), 'rdp'),
    (Draws('cyclic', 100, 10, 10, 10),
     Matrix(2.0, sensitivities=tuple(1 + r / 9 for r in range(37))), 'rdp'),
    (poisson_sampling(1000, 50), Gaussian(1.0), 'pld'),
    (poisson_sampling(1000, 50), Laplace(3.0), 'pld'),
  ],
)  # fmt: skip
def test_trajectories_end_at_epsilon_and_never_fall(sampling, mechanism, kind):
  path = accountant.trajectory(sampling, mechanism, 37, DELTA, accountant=kind)
  stated = accountant.epsilon(sampling, mechanism, 37, DELTA, accountant=kind)
  assert (path.accountant, path.adjacency) == (stated.accountant, stated.adjacency)
  assert path.epsilon.shape == path.delta.shape == (37,)
  assert path.epsilon[-1] == pytest.approx(stated.epsilon, rel=1e-9)
  assert np.all(np.diff(path.epsilon) >= 0)
  for rounds in (1, 5, 23):
    exact = accountant.epsilon(sampling, mechanism, rounds, DELTA, accountant=kind).epsilon
    assert path.epsilon[rounds - 1] >= exact * (1 - 1e-6)  # never below the truth
    if kind == 'rdp':
      assert path.epsilon[rounds - 1] == pytest.approx(exact, rel=1e-9)


@pytest.mark.slow
def test_few_points_of_pld_are_filled_from_above():
  made = accountant.claim(
    poisson_sampling(1000, 50), Gaussian(1.0), rounds=100, delta=DELTA,
    accountant='pld',
  )  # fmt: skip
  path = made.trajectory(100, DELTA, points=3)
  for rounds in (2, 9, 11, 50):
    assert path.epsilon[rounds - 1] >= made.epsilon(rounds, DELTA)


def test_a_trajectory_is_exact_at_the_last_round_within_a_budget():
  how = {'rounds': 60, 'delta': DELTA, 'accountant': 'pld'}
  made = accountant.claim(poisson_sampling(1000, 50), Gaussian(2.0), **how)
  budget = made.epsilon(41, DELTA) * 1.001
  assert budget < made.epsilon(42, DELTA)
  few = made.trajectory(60, DELTA, points=3).epsilon
  assert few[40] > budget  # without the budget: that of a later round
  path = made.trajectory(60, DELTA, points=3, budget=budget).epsilon
  assert path[40] == made.epsilon(41, DELTA) and path[41] > budget


def test_a_trajectory_is_composed_where_it_is_looked_up():
  how = {'rounds': 60, 'delta': DELTA, 'accountant': 'pld'}
  made = accountant.claim(poisson_sampling(1000, 50), Gaussian(2.0), **how)
  path = made.trajectory(60, DELTA, points=6, every=10).epsilon
  for rounds in range(10, 70, 10):
    exact = made.epsilon(rounds, DELTA)
    assert exact <= path[rounds - 1] <= exact * 1.001


@pytest.mark.slow
@pytest.mark.parametrize('rounds', [1, 30, 1000])
@pytest.mark.parametrize('noise', [0.8, 2.0])
def test_a_coarser_grid_is_close_and_never_below(rounds, noise):
  """Against the grid that dp-accounting takes by itself."""
  from dp_accounting import pld

  made = Claim(poisson_sampling(1000, 50), Gaussian(noise), 'add_or_remove_one', 'pld')
  event, count = events.build(made.sampling, made.mechanism, made.adjacency, 'pld', rounds)
  finest = pld.PLDAccountant().compose(event, count).get_epsilon(DELTA)
  ours, coarser = made.epsilon(rounds, DELTA), made.epsilon(rounds, DELTA, 10**0.5)
  assert finest - 1e-9 <= ours <= finest * (1 + 1e-4)
  assert ours - 1e-9 <= coarser <= finest * (1 + 1e-3)


@pytest.mark.parametrize(
  'mechanism, adjacency, counts',
  [
    (Gaussian(2.0), 'add_or_remove_one', True),
    (Gaussian(2.0), 'replace_one', True),  # the draw amplifies
    (DiscreteGaussian(2.0), 'replace_special', False),
  ],
)
def test_overflow_counts_where_the_draw_amplifies_or_differs(mechanism, adjacency, counts):
  cut = poisson_sampling(1000, 50, 100)
  assert Claim(cut, mechanism, adjacency, 'rdp').overflow_counts is counts
