"""Simulation of the objects: one budget with the objects, stopped before it is exceeded."""

import jax
import numpy as np
import pytest
from reference.objects import client, loop, server

from fedjax_mem.federated import PrivacyBudgetExceeded, PrivacyConfig, simulate_federation
from fedjax_mem.federated.secret import REPEATABLE

WAYS = ('local', 'central')
TIGHT = PrivacyConfig(epsilon=1.0, noise_multiplier=0.3)  # one release costs far more


def clients(privacy, count=4):
  return [client(i, privacy_config=privacy) for i in range(count)]


@pytest.mark.parametrize('way', WAYS)
def test_a_run_beyond_the_budget_is_refused_before_its_first_round(way):
  """It ran to epsilon 55 under a budget of 1 where the noise was central."""
  made = clients(TIGHT)
  with pytest.raises(PrivacyBudgetExceeded, match='epsilon must be at most 1 after every release'):
    simulate_federation(server(), made, privacy=way)
  assert all(x.privacy.releases == 0 for x in made)


@pytest.mark.slow
@pytest.mark.parametrize('way', WAYS)
def test_a_second_run_needs_what_is_left_of_the_budget(way):
  made = clients(PrivacyConfig(epsilon=2.0))
  found = simulate_federation(server(), made, privacy=way)
  assert 1.9 < found.guarantee.epsilon <= 2.0 and found.guarantee.trust == way
  with pytest.raises(PrivacyBudgetExceeded):
    simulate_federation(server(), made, privacy=way)
  with pytest.raises(PrivacyBudgetExceeded):
    loop(server(), made)
  assert all(x.privacy.releases == 3 for x in made)


@pytest.mark.slow
@pytest.mark.parametrize('way', WAYS)
def test_runs_add_up_to_the_budget(way):
  enough = PrivacyConfig(epsilon=8.0, noise_multiplier=4.0)
  made = clients(enough)
  spent = [simulate_federation(server(), made, privacy=way).guarantee for _ in range(2)]
  assert spent[0].epsilon < spent[1].epsilon <= 8.0
  assert [x.rounds for x in spent] == [3, 6]


@pytest.mark.slow
def test_the_loop_counts_what_was_simulated():
  made = clients(PrivacyConfig(epsilon=2.0))
  federation = server(rounds=2)
  loop(federation, made, rounds=1)
  with pytest.raises(PrivacyBudgetExceeded):
    simulate_federation(federation, made, rounds=2)
  simulate_federation(federation, made, rounds=1)
  with pytest.raises(PrivacyBudgetExceeded):
    loop(federation, made, rounds=1)


def test_clients_with_other_noise_are_refused():
  made = clients(PrivacyConfig(epsilon=2.0))
  made[0].privacy.charge()  # planned for one release
  with pytest.raises(ValueError, match='noise of one size'):
    simulate_federation(server(), made)


@pytest.mark.slow
@pytest.mark.parametrize('way', WAYS)
def test_only_a_seed_of_the_noise_repeats_it_and_the_guarantee_says_so(way):
  def run(**options):
    made = clients(PrivacyConfig(epsilon=2.0))
    found = simulate_federation(server(seed=3), made, privacy=way, **options)
    assert found.covered == {'finite'} < set(found.metrics)  # losses and ids are not
    assert all(x.privacy.get_privacy_spent().notes == found.guarantee.notes for x in made)
    return np.ravel(found.model.params['logits']['kernel']), found.guarantee

  (one, said), (other, _) = run(), run()
  assert np.abs(one - other).min() > 0 and REPEATABLE not in said.notes
  (one, said), (same, _) = run(noise_seed=7), run(noise_seed=7)
  np.testing.assert_array_equal(one, same)
  assert REPEATABLE in said.notes and REPEATABLE in str(said)


@pytest.mark.parametrize('seed', [-1, 2**32, 0.5])
def test_noise_seeds_out_of_range_are_refused(seed):
  made = clients(PrivacyConfig(epsilon=2.0))
  with pytest.raises(ValueError, match='noise_seed must be'):
    simulate_federation(server(), made, noise_seed=seed)
  assert all(x.privacy.releases == 0 for x in made)


@pytest.mark.slow
def test_without_privacy_nothing_is_claimed():
  found = simulate_federation(server(), [client(i) for i in range(3)])
  assert found.guarantee is None
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(found.model.params))
