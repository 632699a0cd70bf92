"""A statement of privacy says everything that it depends on."""

import math

import pytest

from fedjax_mem import account
from fedjax_mem.account import guarantee
from fedjax_mem.core import Bound, Draws
from fedjax_mem.mechanisms import DiscreteGaussian, Gaussian, Laplace, Matrix, Skellam, Tree

TURNS = Draws('cyclic', 80, 10, 10, 8)
GRID = Bound(l1=30.0, l2=30.0)


def test_levels():
  bounds = (0.1, 1.0, 1.0001, 5.0, 5.1, 10.0, 10.1, math.inf)
  names = [guarantee.level(e) for e in bounds]
  assert names == ['Strong'] * 2 + ['Moderate'] * 2 + ['Weak'] * 2 + ['Minimal'] * 2


def test_the_text_has_every_part():
  everyone = Draws('poisson', 3383, 120, 3383)
  stated = account.epsilon(everyone, Gaussian(1.2), 100, 1e-5, accountant='rdp', notes=('a', 'b'))
  for part in ('1.986', '1e-05', '100 rounds', 'RDP', 'add-or-remove-one', 'client level'):
    assert part in str(stated)
  assert str(stated).endswith(': Moderate; ideal noise (float32 simulation); a; b')


@pytest.mark.parametrize(
  ('mechanism', 'word'),
  [
    (Gaussian(2.0), 'ideal noise (float32 simulation)'),
    (Laplace(2.0), 'ideal noise (float32 simulation)'),
    (Tree(2.0, restart=8), 'ideal noise (float32 simulation)'),
    (Matrix(2.0, (1.0,) * 8, separation=8), 'ideal noise (float32 simulation)'),
    (DiscreteGaussian(2.0), 'exact (integers)'),
    (Skellam(2.0, dimension=100), 'exact (integers)'),
    (DiscreteGaussian(2.0, shares=8, dimension=100), 'exact (integers)'),
    (Skellam(2.0, shares=8, dimension=100), 'exact (integers)'),
  ],
  ids=lambda x: type(x).__name__,
)
def test_each_statement_says_whether_its_noise_is_exact(mechanism, word):
  stated = account.epsilon(TURNS, mechanism, 8, 1e-5, bound=GRID)
  assert stated.noise == word and f'; {word}' in str(stated)
  ledger = account.Ledger.plan(TURNS, 'noise', mechanism, rounds=8, delta=1e-5, bound=GRID)
  assert ledger.guarantee(8).noise == word
  assert ledger.to_dict()['guarantee']['noise'] == word
