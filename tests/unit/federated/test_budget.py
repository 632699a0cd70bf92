"""The budget of a client: the ledger refuses what would exceed it, before it is released."""

import pytest

from fedjax_mem import account, mechanisms
from fedjax_mem.core import Draws
from fedjax_mem.federated.budget import Budget, PrivacyBudgetExceeded

DELTA = 1e-7


def local(noise, notes=()):
  return account.claim(None, mechanisms.Gaussian(noise), rounds=9, delta=DELTA, notes=notes)


def drawn(noise):
  draws = Draws('uniform', 10**6, 20, 20)
  return account.claim(draws, mechanisms.Gaussian(noise), rounds=9, delta=DELTA)


@pytest.mark.parametrize('made', [local(9.0), drawn(0.7)], ids=['local', 'central'])
@pytest.mark.parametrize('step', [1, 3])
def test_all_that_fits_and_nothing_more(made, step):
  epsilon = made.epsilon(9, DELTA) * (1 + 1e-9)
  budget = Budget(epsilon, DELTA)
  assert [budget.charge(made, 1, step) for _ in range(9 // step)] == list(range(0, 9, step))
  with pytest.raises(PrivacyBudgetExceeded, match=r'after release 10 of'):
    budget.charge(made, 1, step)
  with pytest.raises(PrivacyBudgetExceeded, match='nothing was released'):
    budget.check(made, 1)
  assert budget.releases == 9
  assert budget.spent(made, 1).epsilon == pytest.approx(made.epsilon(9, DELTA))


def test_the_first_release_may_be_too_much():
  budget = Budget(0.1, DELTA)
  for more in (1, 5):
    with pytest.raises(PrivacyBudgetExceeded, match='after release 1 of'):
      budget.charge(local(1.0), 9, more)
  assert budget.releases == 0 and budget.spent(local(1.0), 9).epsilon == 0


def test_one_kind_of_release_alone():
  budget = Budget(50.0, DELTA)
  budget.charge(local(5.0), 9)
  for other in (drawn(5.0), local(6.0)):
    with pytest.raises(PrivacyBudgetExceeded, match='one noise and one draw'):
      budget.charge(other, 9)
  assert budget.releases == 1


def test_the_accountant_of_the_first_release_stays():
  budget = Budget(50.0, DELTA)
  by = {
    x: account.claim(None, mechanisms.Gaussian(5.0), rounds=9, delta=DELTA, accountant=x)
    for x in ('rdp', 'pld')
  }
  budget.charge(by['rdp'], 9)
  budget.charge(by['pld'], 9)
  assert budget.spent(by['pld'], 9).accountant == 'RDP'
  assert budget.spent(by['pld'], 9).epsilon == pytest.approx(by['rdp'].epsilon(2, DELTA))


def test_notes_stay():
  budget = Budget(50.0, DELTA)
  budget.charge(local(5.0, ('first',)), 9)
  budget.charge(local(5.0), 9)
  assert budget.spent(local(5.0), 9).notes == ('first',)
