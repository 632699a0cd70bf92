"""The ledger of local noise: the client with the most participations counts."""

import json
import math

import numpy as np
import pytest

from fedjax_mem.account import accountant
from fedjax_mem.account.local_ledger import LocalLedger
from fedjax_mem.core import Draws
from fedjax_mem.mechanisms import Gaussian, Laplace

DELTA = 1e-5
NOISE = Gaussian(8.0)


def plan(mechanism=NOISE, num_clients=6, rounds=20, **how):
  return LocalLedger.plan(
    'local', mechanism, num_clients=num_clients, rounds=rounds, delta=DELTA, **how
  )


def test_the_busiest_client_is_stated():
  book = plan()
  assert book.guarantee().epsilon == 0.0
  for round, ids in enumerate(([0, 1], [1, 2], [1, 5], [3]), start=1):
    book.charge(round, ids)
  assert book.counts.tolist() == [1, 3, 1, 1, 0, 1]
  stated, exact = book.guarantee(), accountant.epsilon(None, NOISE, 3, DELTA)
  assert stated.epsilon == pytest.approx(exact.epsilon, rel=1e-12)
  assert (stated.rounds, stated.trust, stated.adjacency) == (4, 'local', 'replace_one')
  assert book.metrics(4)['participations'] == 3


def test_laplace_adds_up_purely():
  book = plan(Laplace(4.0))
  book.charge(1, [0])
  book.charge(2, [0])
  assert book.guarantee().epsilon == pytest.approx(2 * 2 / 4.0)


def test_a_repeated_round_is_counted_once_and_a_gap_is_refused():
  book = plan()
  book.charge(1, [0, 1])
  book.charge(1, [0, 1])
  assert book.most == 1
  with pytest.raises(ValueError, match='round must be 2'):
    book.charge(3, [0])


def test_steps_and_batches_of_dp_sgd():
  noise = Gaussian(1.5)
  batches = Draws('poisson', 200, 10, 200)
  book = plan(noise, rounds=10, steps=5, batches=batches)
  book.charge(1, [0])
  book.charge(2, [0])
  exact = accountant.epsilon(batches, noise, 10, DELTA).epsilon
  assert exact <= book.guarantee().epsilon <= exact * 1.001
  assert book.guarantee().unit == 'example'
  assert book.guarantee().adjacency == 'add_or_remove_one'


def test_the_budget_stops_before_any_client_breaks_it():
  three = accountant.epsilon(None, NOISE, 3, DELTA).epsilon
  book = plan(budget=three)
  assert book.allowed == 3
  for round in (1, 2, 3):
    assert not book.stop_before(round)
    book.charge(round, [4, round])
  assert book.stop_before(4) and not book.stop_before(3)
  with pytest.raises(ValueError, match='participations must be at most 3'):
    book.charge(4, [4])
  assert (book.charged, book.most) == (3, 3)
  with pytest.raises(ValueError, match='what one participation costs'):
    plan(budget=1e-3)


def test_saved_and_resumed_is_exact(tmp_path):
  book = plan(budget=50.0)
  rng = np.random.default_rng(0)
  cohorts = [rng.choice(6, 3, replace=False) for _ in range(12)]
  for round, ids in enumerate(cohorts[:8], start=1):
    book.charge(round, ids)
  book.save(tmp_path / 'ledger.json')
  again = plan(budget=50.0).resume(tmp_path / 'ledger.json')
  assert again.to_dict() == book.to_dict()
  for round, ids in enumerate(cohorts, start=1):  # from an older checkpoint: from the start
    again.charge(round, ids)
  for round, ids in enumerate(cohorts[8:], start=9):
    book.charge(round, ids)
  assert again.to_dict() == book.to_dict()
  np.testing.assert_array_equal(again.counts, np.bincount(np.concatenate(cohorts), minlength=6))


def test_each_round_charged_is_stated_as_it_was_then(tmp_path):
  book = plan()
  for round, ids in enumerate(([0, 1], [2], [0]), start=1):
    book.charge(round, ids)
  assert book.trail == [1, 1, 2]
  book.save(tmp_path / 'ledger.json')
  for held in (book, LocalLedger.load(tmp_path / 'ledger.json')):
    assert [held.metrics(r)['participations'] for r in range(4)] == [0, 1, 1, 2]
    assert held.guarantee(2) == held.entry.guarantee(1)._replace(rounds=2)
  with pytest.raises(ValueError, match='round must be an integer >= 0 and <= 3, got 4'):
    book.guarantee(4)
  with pytest.raises(ValueError, match='round must be an integer >= 0 and <= 3, got 4'):
    book.finish(4)


def test_who_took_part_is_for_its_owner_alone(tmp_path):
  (tmp_path / 'ledger.json.part').write_text('of a killed process')
  plan().save(tmp_path / 'ledger.json')
  assert (tmp_path / 'ledger.json').stat().st_mode & 0o777 == 0o600


def test_a_trail_of_other_rounds_than_those_charged_is_refused(tmp_path):
  data = plan().to_dict() | {'charged': 2}
  (tmp_path / 'ledger.json').write_text(json.dumps(data))
  with pytest.raises(ValueError, match='must be a whole local ledger of version 4, got 2 rounds'):
    LocalLedger.load(tmp_path / 'ledger.json')


@pytest.mark.parametrize('rounds', [10, 12])
def test_a_resumed_run_keeps_the_accountant_of_its_ledger(tmp_path, rounds):
  batches = Draws('poisson', 200, 10, 200)
  how = {'steps': 5, 'batches': batches}
  book = plan(Gaussian(1.5), rounds=10, accountant='rdp', **how)
  book.charge(1, [0])
  book.save(tmp_path / 'ledger.json')
  again = plan(Gaussian(1.5), rounds=rounds, **how).resume(tmp_path / 'ledger.json')
  assert again.guarantee() == book.guarantee() and again.guarantee().accountant == 'RDP'
  assert len(again.entry.epsilon) == rounds
  with pytest.raises(ValueError, match='must be the ledger of this run, with claim'):
    plan(Gaussian(1.5), rounds=rounds, accountant='pld', **how).resume(tmp_path / 'ledger.json')


def test_notes_are_stated_saved_and_kept_by_a_resumed_run(tmp_path):
  book = plan(notes=('one',))
  book.save(tmp_path / 'ledger.json')
  assert LocalLedger.load(tmp_path / 'ledger.json').guarantee().notes == ('one',)
  again = plan(notes=('one', 'two')).resume(tmp_path / 'ledger.json')
  assert again.guarantee().notes == ('one', 'two')
  assert str(again.guarantee()).endswith('; ideal noise (float32 simulation); one; two')


def test_resume_refuses_another_run_and_a_broken_file(tmp_path):
  plan().save(tmp_path / 'ledger.json')
  with pytest.raises(ValueError, match='must be the ledger of this run'):
    plan(Gaussian(9.0)).resume(tmp_path / 'ledger.json')
  with pytest.raises(ValueError, match='must be the ledger of 7 clients'):
    plan(num_clients=7).resume(tmp_path / 'ledger.json')
  text = (tmp_path / 'ledger.json').read_text()
  (tmp_path / 'ledger.json').write_text(text[: len(text) // 2])
  with pytest.raises(ValueError, match='must be a whole local ledger'):
    plan().resume(tmp_path / 'ledger.json')


@pytest.mark.parametrize('ids', [[0, 0], [-1], [6]])
def test_ids_that_are_no_clients_are_refused(ids):
  with pytest.raises(ValueError, match='ids must be distinct and in'):
    plan().charge(1, ids)


def test_an_empty_round_counts_as_a_round():
  book = plan()
  book.charge(1, [])
  assert (book.charged, book.most) == (1, 0)


@pytest.mark.parametrize(
  'changed, words',
  [
    ({'batches': Draws('poisson', 0, 1, 10)}, 'population must be'),
    ({'budget': math.nan}, 'budget must be'),
    ({'steps': 0}, 'steps must be'),
    ({'num_clients': 0}, 'num_clients must be'),
  ],
)
def test_arguments_out_of_range_are_refused(changed, words):
  with pytest.raises(ValueError, match=words):
    plan(**changed)
