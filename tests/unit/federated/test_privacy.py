"""Privacy as objects: noise of each object's own, and budgets that are not exceeded."""

import jax.numpy as jnp
import numpy as np
import pytest
from reference.objects import client, loop, server

from fedjax_mem.federated import (
  DifferentialPrivacy,
  PrivacyAccountant,
  PrivacyBudgetExceeded,
  PrivacyConfig,
)
from fedjax_mem.federated.secret import REPEATABLE

MECHANISMS = ('gaussian', 'laplace', 'discrete_gaussian')
ZEROS = {'w': jnp.zeros(50)}


def noise(dp):
  return np.asarray(dp.apply(ZEROS)['w'])


def config(mechanism, **options):
  return PrivacyConfig(mechanism=mechanism, **{'epsilon': 50.0, 'noise_multiplier': 1.0, **options})


@pytest.mark.slow
@pytest.mark.parametrize('mechanism', MECHANISMS)
def test_noise_is_of_each_object_and_release(mechanism):
  one, other = (DifferentialPrivacy(config(mechanism)) for _ in range(2))
  drawn = [noise(one), noise(one), noise(other)]
  for i, a in enumerate(drawn):
    for b in drawn[:i]:
      assert np.mean(a != b) > 0.9
  again = [DifferentialPrivacy(config(mechanism), noise_seed=3) for _ in range(2)]
  np.testing.assert_array_equal(noise(again[0]), noise(again[1]))
  assert again[0].get_privacy_spent().notes == (REPEATABLE,)
  assert one.get_privacy_spent().notes == ()


@pytest.mark.slow
@pytest.mark.parametrize('mechanism', MECHANISMS)
def test_releases_end_before_the_budget_is_exceeded(mechanism):
  dp = DifferentialPrivacy(config(mechanism, epsilon=9.0, noise_multiplier=2.0))
  for _ in range(1000):
    try:
      dp.apply(ZEROS)
    except PrivacyBudgetExceeded:
      break
  last = dp.get_privacy_spent()
  assert last.rounds == dp.releases >= 2
  assert 6 < last.epsilon <= 9.0
  with pytest.raises(PrivacyBudgetExceeded, match=f'release {dp.releases + 1} of'):
    dp.apply(ZEROS)
  assert dp.get_privacy_spent() == last


def test_a_wrong_update_costs_nothing():
  dp = DifferentialPrivacy(PrivacyConfig())
  with pytest.raises(ValueError, match='must be finite'):
    dp.apply({'w': jnp.array([jnp.nan])})
  assert dp.releases == 0 and dp.get_privacy_spent().epsilon == 0


@pytest.mark.parametrize(('noise_multiplier', 'rate'), [(0.8, 0.1), (2.0, 1.0), (5.0, 0.5)])
def test_a_loop_that_asks_the_accountant_keeps_within_its_budget(noise_multiplier, rate):
  accountant = PrivacyAccountant(target_epsilon=5.0, target_delta=1e-5)
  assert not accountant.is_budget_exhausted()
  for _ in range(1000):
    accountant.step(noise_multiplier, rate)
    if accountant.is_budget_exhausted():
      break
  assert 4 < accountant.epsilon <= 5.0
  accountant.step(noise_multiplier, rate)  # it counts what was released all the same
  assert accountant.epsilon > 5.0 and accountant.is_budget_exhausted()


def test_the_first_step_may_exhaust_the_budget():
  accountant = PrivacyAccountant(target_epsilon=0.5, target_delta=1e-5)
  accountant.step(0.5, 1.0)
  assert accountant.is_budget_exhausted() and accountant.epsilon > 0.5


@pytest.mark.slow
def test_clients_of_a_server_stop_at_their_budgets():
  """Rounds with a noise that was not computed for them: the third is refused by each client."""
  made = server(rounds=9)
  privacy = PrivacyConfig(epsilon=8.0, noise_multiplier=1.5)
  clients = [client(i, privacy_config=privacy) for i in range(2)]
  with pytest.raises(PrivacyBudgetExceeded):
    loop(made, clients, rounds=9)
  assert made.privacy_accountant.is_budget_exhausted()
  assert 0 < made.privacy_accountant.epsilon <= 8.0
  assert 0 < made.round < 9
