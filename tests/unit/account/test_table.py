"""The rows that the privacy commands print."""

import pytest

from fedjax_mem.account import accountant, events
from fedjax_mem.account.table import privacy_table, sampling_of
from fedjax_mem.core import Draws, IncompatibleStages
from fedjax_mem.mechanisms import Gaussian

RUN = {'population': 3383, 'delta': 1e-5, 'cohort': 120, 'rounds': 100}
RATE = {'population': None, 'cohort': None, 'sampling_rate': 120 / 3383}


@pytest.mark.slow
def test_epsilon_by_every_accountant_that_holds():
  rows = privacy_table('epsilon', noise_multiplier=1.2, **RUN)
  found = {(row['accountant'], row['adjacency']): row['epsilon'] for row in rows}
  assert rows[0]['accountant'] == 'PLD' and rows[0]['level'] == 'Moderate'
  assert found['RDP', 'add_or_remove_one'] == pytest.approx(1.9861, abs=5.1e-5)
  assert found['PLD', 'add_or_remove_one'] == pytest.approx(1.7075, abs=5.1e-5)
  assert ('RDP', 'replace_one') not in found and ('PLD', 'replace_one') in found
  assert len(rows) == len(found)


def test_one_accountant_and_adjacency_give_one_row():
  (row,) = privacy_table(
    'epsilon', noise_multiplier=1.2, accountant='rdp', adjacency='add_or_remove_one', **RUN
  )
  assert (row['sampling'], row['cohort'], row['rounds']) == ('poisson', 120, 100)
  assert row['noise_share'] == pytest.approx(1.2 / 120)


@pytest.mark.slow
@pytest.mark.parametrize('missing', ['noise_multiplier', 'rounds', 'cohort'])
@pytest.mark.parametrize('scheme', ['poisson', 'cyclic'])
def test_calibrate_finds_what_is_left_out(missing, scheme):
  given = {'cohort': 120, 'rounds': 100, 'noise_multiplier': 3.0, missing: None}
  (row,) = privacy_table(
    'calibrate', population=3383, delta=1e-5, target_epsilon=1.5, scheme=scheme, **given
  )
  assert row['epsilon'] <= row['target'] == 1.5
  assert row[missing] is not None
  apart = 3383 // row['cohort'] if scheme == 'cyclic' else 1
  sampling = Draws(scheme, 3383, row['cohort'], row['capacity'], apart)
  stated = accountant.epsilon(sampling, Gaussian(row['noise_multiplier']), row['rounds'], 1e-5)
  assert stated.epsilon == pytest.approx(row['epsilon'], rel=1e-9)


@pytest.mark.slow
def test_plan_shows_that_a_larger_cohort_pays_less():
  rows = privacy_table('plan', target_epsilon=2.0, **RUN)
  assert [row['cohort'] for row in rows] == [120, 480, 1920]
  shares = [row['noise_share'] for row in rows]
  assert shares == sorted(shares, reverse=True)
  assert all(row['epsilon'] <= 2.0 for row in rows)
  targets = {row['target'] for row in privacy_table('plan', **{**RUN, 'cohort': 3383})}
  assert targets == {1.0, 2.0, 5.0, 10.0}


@pytest.mark.parametrize(
  'command, changed, words',
  [
    ('epsilom', {}, "Did you mean 'epsilon'"),
    ('epsilon', {}, 'noise_multiplier must be given'),
    ('epsilon', {'noise_multiplier': 0.0}, 'noise_multiplier must be'),
    ('epsilon', {'noise_multiplier': 1.0, 'rounds': None}, 'rounds must be given'),
    ('epsilon', {'noise_multiplier': 1.0, 'cohort': 4000}, 'at most the population of 3383'),
    ('epsilon', {'noise_multiplier': 1.0, 'delta': 1.0}, 'delta must be'),
    ('calibrate', {}, 'target_epsilon must be given'),
    ('calibrate', {'target_epsilon': 1.0, 'noise_multiplier': 1.0}, 'exactly one of'),
    ('calibrate', {'target_epsilon': -1.0}, 'must be'),
    ('plan', {'target_epsilon': 0.0}, 'must be'),
    ('plan', {'scheme': 'shuffled'}, 'scheme must be'),
    ('plan', {'mechanism': 'tree'}, 'mechanism must be'),
    ('epsilon', {'population': None}, "population must be given for 'epsilon', or sampling_rate"),
    ('epsilon', {'sampling_rate': 0.1}, 'in place of population and cohort, got 0.1 with 3383'),
    ('epsilon', {'sampling_rate': 0.1, 'population': None}, 'in place of population and cohort'),
    ('epsilon', {**RATE, 'sampling_rate': 1.5}, 'sampling_rate must be a number in \\(0, 1\\]'),
    ('epsilon', {**RATE, 'scheme': 'without_replacement'}, 'sampling_rate must be left out for'),
    ('epsilon', {**RATE, 'scheme': 'cyclic'}, 'sampling_rate must be left out for'),
    ('calibrate', {**RATE, 'target_epsilon': 1.0, 'rounds': None}, 'exactly one of rounds and noi'),
  ],
)
def test_arguments_out_of_range_are_refused(command, changed, words):
  with pytest.raises(ValueError, match=words):
    privacy_table(command, **{**RUN, **changed})


def test_a_pair_without_an_event_is_refused():
  with pytest.raises(IncompatibleStages, match='fixed size'):
    privacy_table(
      'epsilon',
      noise_multiplier=1.0,
      scheme='without_replacement',
      adjacency=events.ADJACENCIES[0],
      **RUN,
    )


@pytest.mark.slow
def test_a_rate_stands_for_the_population_and_the_cohort():
  given = {**RUN, 'noise_multiplier': 1.2}
  usual, by_rate = (privacy_table('epsilon', **{**given, **x}) for x in ({}, RATE))
  assert len(by_rate) == len(usual)
  for one, other in zip(by_rate, usual, strict=True):
    for key in ('epsilon', 'accountant', 'adjacency', 'level', 'noise'):
      assert one[key] == other[key]
    assert one['delta'] == 1e-5  # no cohort is cut
    assert one['sampling_rate'] == 120 / 3383 and not {'population', 'noise_share'} & set(one)
    assert sampling_of(one).expected / sampling_of(one).population == 120 / 3383


@pytest.mark.slow
def test_a_rate_can_be_calibrated_and_planned_for():
  given = {'delta': 1e-5, 'sampling_rate': 0.05, 'target_epsilon': 2.0}
  (row,) = privacy_table('calibrate', rounds=40, **given)
  assert 1.999 < row['epsilon'] <= 2.0
  (again,) = privacy_table('calibrate', noise_multiplier=row['noise_multiplier'], **given)
  assert again['rounds'] == 40
  told = []
  rows = privacy_table('plan', rounds=40, tell=lambda *x: told.append(x), **given)
  assert [x['sampling_rate'] for x in rows] == pytest.approx([0.05, 0.2, 0.8])
  assert rows[0]['noise_multiplier'] == row['noise_multiplier']
  assert told == [(1, 3), (2, 3), (3, 3)]
