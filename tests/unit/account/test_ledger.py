"""The ledger of central noise: stops in time, survives a kill, refuses what is not its run."""

import dataclasses
import json
import math
import os
import pathlib
import stat

import numpy as np
import pytest

from fedjax_mem.account import accountant, calibrate, ledger, poisson
from fedjax_mem.account.ledger import Ledger
from fedjax_mem.core import Bound, Draws
from fedjax_mem.mechanisms import Gaussian

DELTA = 1e-5
SAMPLING = Draws('poisson', 1000, 50, poisson.capacity(1000, 50, 60, DELTA))
NOISE = Gaussian(1.5)


def plan(mechanism=NOISE, layer='noise', sampling=SAMPLING, rounds=60, delta=DELTA, **how):
  return Ledger.plan(sampling, layer, mechanism, rounds=rounds, delta=delta, **how)


@pytest.mark.slow
def test_each_round_is_stated_as_the_accountant_states_it():
  book = plan()
  assert book.guarantee().epsilon == 0.0 and book.guarantee().rounds == 0
  for rounds in (1, 17, 60):
    book.charge(rounds)
    exact = accountant.epsilon(SAMPLING, NOISE, rounds, DELTA)
    stated = book.guarantee()
    # Before the last round on a coarser grid, and perhaps that of a later round.
    assert exact.epsilon * (1 - 1e-9) <= stated.epsilon <= exact.epsilon * 1.05
    assert exact.delta * (1 - 1e-9) <= stated.delta <= exact.delta * 1.001
  assert stated.epsilon == exact.epsilon and stated.delta == exact.delta
  short = plan(rounds=20)
  for rounds in range(1, 21):
    exact = accountant.epsilon(SAMPLING, NOISE, rounds, DELTA)
    assert short.guarantee(rounds).epsilon == pytest.approx(exact.epsilon, rel=1e-12)


def test_metrics_are_the_numbers_that_are_stated():
  book = plan(accountant='rdp')
  for rounds in (1, 17, 60):
    exact = accountant.epsilon(SAMPLING, NOISE, rounds, DELTA, accountant='rdp')
    stated = book.guarantee(rounds)
    assert stated.epsilon == pytest.approx(exact.epsilon, rel=1e-12)
    assert stated[2:] == exact[2:]
    assert book.metrics(rounds) == {'epsilon': stated.epsilon, 'delta': stated.delta}


@pytest.mark.slow
def test_a_budget_stops_before_the_round_that_breaks_it():
  book = plan(budget=1.2)
  most = calibrate.rounds(1.2, DELTA, SAMPLING, NOISE).rounds
  assert book.allowed == most < 60
  assert not book.stop_before(most) and book.stop_before(most + 1)
  book.charge(most)
  assert book.guarantee().epsilon <= 1.2
  with pytest.raises(ValueError, match='within the budget'):
    book.charge(most + 1)


@pytest.mark.slow
def test_a_run_calibrated_to_its_budget_runs_to_its_end():
  for kind in ('rdp', 'pld'):
    found = calibrate.noise_multiplier(1.0, DELTA, SAMPLING, 60, accountant=kind)
    book = plan(found.mechanism, budget=1.0, accountant=kind)
    assert book.allowed == 60 and book.entry.claim.accountant == kind


def test_saved_and_loaded_is_the_same_to_the_bit(tmp_path):
  book = plan(budget=2.0)
  book.charge(7)
  book.save(tmp_path / 'ledger.json')
  again = Ledger.load(tmp_path / 'ledger.json')
  assert again.to_dict() == book.to_dict()
  assert again.entry == book.entry and again.guarantee() == book.guarantee()
  data = json.loads((tmp_path / 'ledger.json').read_text())
  assert data['guarantee']['accountant'] == 'PLD'
  assert data['guarantee']['adjacency'] == 'add_or_remove_one'
  assert data['guarantee']['level'] == 'Strong'
  assert data['logged losses and norms'] == 'not covered by ε'
  assert [path.name for path in tmp_path.iterdir()] == ['ledger.json']


def test_resume_continues_and_counts_a_repeated_round_once(tmp_path):
  book = plan(budget=2.0)
  book.charge(12)
  book.save(tmp_path / 'ledger.json')
  again = plan(budget=2.0).resume(tmp_path / 'ledger.json')
  again.charge(10)  # the checkpoint was of an earlier round, which runs again
  assert again.charged == 12 and again.entry == book.entry
  again.charge(13)
  assert again.charged == 13


@pytest.mark.parametrize('rounds', [60, 80])
def test_a_resumed_run_keeps_the_accountant_of_its_ledger(tmp_path, rounds):
  """As of a run begun when 'auto' chose another: what was stated stays true."""
  book = plan(accountant='rdp')
  book.charge(12)
  book.save(tmp_path / 'ledger.json')
  assert plan(rounds=rounds).entry.claim.accountant == 'pld'
  again = plan(rounds=rounds).resume(tmp_path / 'ledger.json')
  assert (again.charged, again.planned) == (12, rounds)
  assert again.guarantee() == book.guarantee() and again.guarantee().accountant == 'RDP'
  whole = plan(rounds=rounds, accountant='rdp')
  assert again.guarantee(rounds) == whole.guarantee(rounds)


@pytest.mark.parametrize(('before', 'now'), [('rdp', 'pld'), ('pld', 'rdp')])
def test_resume_refuses_another_accountant_that_is_asked_for(tmp_path, before, now):
  plan(accountant=before).save(tmp_path / 'ledger.json')
  with pytest.raises(ValueError, match='must be the ledger of this run, with claim'):
    plan(accountant=now).resume(tmp_path / 'ledger.json')


def test_notes_are_stated_saved_and_kept_by_a_resumed_run(tmp_path):
  book = plan(notes=('repeatable: the seed is public',))
  book.charge(3)
  assert str(book.guarantee()).endswith('; repeatable: the seed is public')
  assert book.to_dict()['guarantee']['notes'] == ['repeatable: the seed is public']
  assert book.to_dict()['guarantee']['noise'] == 'ideal noise (float32 simulation)'
  book.save(tmp_path / 'ledger.json')
  assert Ledger.load(tmp_path / 'ledger.json').guarantee() == book.guarantee()
  for rounds in (60, 80):
    again = plan(rounds=rounds, notes=('sizes of clients are public',))
    found = again.resume(tmp_path / 'ledger.json').guarantee().notes
    assert found == ('repeatable: the seed is public', 'sizes of clients are public')


def test_a_ledger_of_an_earlier_version_is_refused(tmp_path):
  """It was written after its rounds, so that it may state too little."""
  (tmp_path / 'ledger.json').write_text(json.dumps({**plan().to_dict(), 'version': 3}))
  with pytest.raises(ValueError, match='central ledger of version 4, got version 3'):
    Ledger.load(tmp_path / 'ledger.json')


def test_resume_with_more_rounds_keeps_what_was_done(tmp_path):
  book = plan()
  book.charge(12)
  book.save(tmp_path / 'ledger.json')
  longer = plan(rounds=80).resume(tmp_path / 'ledger.json')
  assert (longer.charged, longer.planned) == (12, 80)
  assert longer.guarantee().epsilon == book.guarantee().epsilon


@pytest.mark.slow
@pytest.mark.parametrize(
  'changed, word',
  [
    ({'mechanism': Gaussian(1.4)}, 'claim'),
    ({'layer': 'other'}, 'layer'),
    ({'sampling': dataclasses.replace(SAMPLING, expected=49)}, 'claim'),
    ({'delta': 2e-5}, 'target_delta'),
    ({'adjacency': 'replace_special'}, 'claim'),
  ],
)
def test_resume_refuses_the_ledger_of_another_run(tmp_path, changed, word):
  plan().save(tmp_path / 'ledger.json')
  with pytest.raises(ValueError, match=f'must be the ledger of this run, with {word}'):
    plan(**changed).resume(tmp_path / 'ledger.json')


@pytest.mark.parametrize('text', ['', '{"version": 1', '[]', '{"version": 2, "kind": "central"}',
                                  '{"version": 1, "kind": "central"}'])  # fmt: skip
def test_a_broken_or_foreign_file_is_refused(tmp_path, text):
  (tmp_path / 'ledger.json').write_text(text)
  with pytest.raises(ValueError, match='must be a whole central ledger'):
    Ledger.load(tmp_path / 'ledger.json')
  with pytest.raises(ValueError, match='must be a whole central ledger'):
    Ledger.load(tmp_path / 'missing.json')


def test_a_failed_write_leaves_the_old_ledger(tmp_path, monkeypatch):
  book = plan()
  book.charge(3)
  book.save(tmp_path / 'ledger.json')
  book.charge(4)

  def full(*args, **kwargs):
    raise OSError('no space left on device')

  monkeypatch.setattr(ledger.json, 'dump', full)
  with pytest.raises(OSError):
    book.save(tmp_path / 'ledger.json')
  monkeypatch.undo()
  assert Ledger.load(tmp_path / 'ledger.json').charged == 3


def test_a_save_replaces_the_file_and_does_not_write_into_it(tmp_path):
  book = plan()
  book.charge(3)
  book.save(tmp_path / 'ledger.json')
  (tmp_path / 'old.json').hardlink_to(tmp_path / 'ledger.json')
  book.charge(4)
  book.save(tmp_path / 'ledger.json')
  assert Ledger.load(tmp_path / 'old.json').charged == 3
  assert Ledger.load(tmp_path / 'ledger.json').charged == 4


def test_a_save_puts_the_file_and_then_its_name_on_the_disk(tmp_path, monkeypatch):
  """Without the second a power cut may undo the rename."""
  done = []
  fsync, replace = os.fsync, pathlib.Path.replace
  kind = lambda held: 'folder' if stat.S_ISDIR(os.fstat(held).st_mode) else 'file'
  monkeypatch.setattr(os, 'fsync', lambda held: (done.append(kind(held)), fsync(held))[1])
  monkeypatch.setattr(
    pathlib.Path, 'replace', lambda *args: (done.append('rename'), replace(*args))[1]
  )
  plan().save(tmp_path / 'ledger.json')
  assert done == ['file', 'rename', 'folder']


def test_what_is_done_is_charged_and_charged_stays():
  book = plan()
  book.charge(3)
  book.finish(2)
  assert (book.charged, book.done) == (3, 2)
  assert book.to_dict()['guarantee']['rounds'] == 3  # what is charged is stated
  with pytest.raises(ValueError, match='round must be an integer >= 0 and <= 3, got 4'):
    book.finish(4)
  with pytest.raises(ValueError, match='done must be'):
    Ledger(book.entry, charged=2, done=3)


def test_infinite_epsilon_survives_json():
  book = plan()
  entry = book.entry._replace(epsilon=(1.0, math.inf), delta=(DELTA, 1.0))
  text = json.dumps(Ledger(entry, charged=2).to_dict(), allow_nan=False)
  assert Ledger.from_dict(json.loads(text)).entry == entry


@dataclasses.dataclass(frozen=True)
class Own(Gaussian):
  """Noise of somebody else."""

  flavour: str = 'plain'


def test_a_mechanism_goes_by_the_path_of_its_class_and_comes_back(tmp_path):
  bound = Bound(l2=3.0, rows=1)
  book = plan(Own(2.0, 'odd'), bound=bound)
  book.save(tmp_path / 'ledger.json')
  said = json.loads((tmp_path / 'ledger.json').read_text())['entry']
  assert said['mechanism'] == {
    'class': f'{__name__}:Own', 'noise_multiplier': 2.0, 'flavour': 'odd'
  }  # fmt: skip
  assert said['layer'] == 'noise' and said['bound'] == [None, 3.0, None, 1]
  assert Ledger.load(tmp_path / 'ledger.json').entry == book.entry
  for other in (Own(2.0), Gaussian(2.0)):
    with pytest.raises(ValueError, match='this run, with claim'):
      plan(other, bound=bound).resume(tmp_path / 'ledger.json')


@pytest.mark.parametrize('name', ['fedjax_mem.nowhere:Noise', 'math:pi', 'no colon', 'os:PathLike'])
def test_a_ledger_of_noise_that_is_not_there_is_refused(tmp_path, name):
  data = plan().to_dict()
  data['entry']['mechanism']['class'] = name
  (tmp_path / 'ledger.json').write_text(json.dumps(data))
  with pytest.raises(ValueError, match='must be a whole central ledger'):
    Ledger.load(tmp_path / 'ledger.json')


@pytest.mark.parametrize('budget', [0.0, -1.0, math.nan])
def test_budgets_out_of_range_are_refused(budget):
  with pytest.raises(ValueError, match='budget must be'):
    plan(budget=budget)


def test_a_budget_below_one_round_and_unplanned_rounds_are_refused():
  with pytest.raises(ValueError, match='what one round costs, got 0\\.01'):
    plan(budget=0.01)
  with pytest.raises(ValueError, match='round must be'):
    plan().stop_before(61)
  with pytest.raises(ValueError, match='round must be'):
    plan().charge(0)


def test_the_trajectory_is_plain_floats():
  assert all(type(value) is float for value in plan().entry.epsilon)
  assert np.all(np.diff(plan().entry.epsilon) >= 0)
