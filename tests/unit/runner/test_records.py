"""Records say which of their metrics a claim of privacy covers, and so does all that shows them."""

import json

import numpy as np
import pytest

from fedjax_mem.report.html import render
from fedjax_mem.report.tables import runs_table
from fedjax_mem.report.tracker import read_metrics
from fedjax_mem.runner.loop import run
from fedjax_mem.runner.prepare import get_ready
from fedjax_mem.runner.records import Records
from fedjax_mem.runner.traffic import Traffic

pytestmark = pytest.mark.usefixtures('undrawn')

NOISE = '{{use="{}", options={{l2_clip_norm=0.5, noise_multiplier={}}}}}'
BASE = (
  'rounds=2', 'weighting.name=equal', 'weighting.options={divisor=4}', 'privacy.delta=1e-3',
  'evaluation.every=2',
)  # fmt: skip
CENTRAL = f'stages=[{NOISE.format("central", 2.0)}]'
BOTH = f'stages=[{NOISE.format("local", 9.0)}, {NOISE.format("central", 2.0)}]'
LOCAL = f'stages=[{NOISE.format("local", 9.0)}]'


@pytest.fixture
def ran(make, tmp_path, capsys):
  """Returns how to run an experiment: (folder, what it has said)."""

  def go(*overrides):
    result = run(make(*BASE, *overrides), tmp_path / 'runs', quiet=True)
    return result.folder, capsys.readouterr().out

  return go


def test_what_is_computed_from_single_updates_is_not_covered_and_all_say_so(ran):
  folder, said = ran('selection.name=poisson', CENTRAL)
  first, last = read_metrics(folder / 'metrics.jsonl')
  covered = {'round', 'epsilon', 'delta'}
  assert set(first['covered']) == covered
  assert set(last['covered']) == covered | {'test_loss', 'test_accuracy'}
  bare = {'train_loss', 'clients', 'examples', 'bytes_up', 'bytes_down', 'seconds'}
  assert bare <= set(last) - set(last['covered'])
  assert 'not_finite' not in last and 'selected' not in last
  told = json.loads((folder / 'manifest.json').read_text())['coverage']
  assert set(told['covered']) == set(last['covered'])
  assert set(told['not covered']) == set(last) - set(last['covered']) - {'covered'}
  assert {'checkpoints', 'partition.png'} <= set(told['files not covered'])
  for words in ('clients/s (not covered)', f'loss {last["train_loss"]:.4f} (not covered)',
                f'test loss {last["test_loss"]:.4f} ·', f'accuracy {last["test_accuracy"]:.2%} ·',
                f'ε {last["epsilon"]:.4g} ·', 'B (not covered) ·'):  # fmt: skip
    assert words in ' '.join(said.split()), words
  page = render(folder)
  for words in ('training loss (not covered by ε)', '>train_loss (not covered by ε)<',
                'sent by clients (not covered by ε)', '>clients (not covered by ε)<',
                'Partition of the data (not covered by ε)', '>final accuracy<', '>test loss<',
                '>test_accuracy<', '>epsilon<'):  # fmt: skip
    assert words in page, words
  for style in ('text', 'markdown', 'csv'):
    table = runs_table(folder, style)
    assert 'train_loss (not covered by ε)' in table and 'test_loss (not' not in table


@pytest.mark.slow
@pytest.mark.parametrize(
  ('stages', 'sampler', 'covered'),
  [(BOTH, 'poisson', False), (LOCAL, 'uniform', True)],
  ids=['beside an amplifying draw', 'of an open draw'],
)
def test_what_local_ledgers_tell_of_the_draw_is_covered_if_the_draw_is_open(
  ran, stages, sampler, covered
):
  folder, _ = ran(f'selection.name={sampler}', stages)
  last = read_metrics(folder / 'metrics.jsonl')[-1]
  for name in ('local/epsilon', 'local/participations'):
    assert (name in last['covered']) is covered
  assert 'epsilon' in last['covered']


@pytest.mark.slow
def test_adaptive_clipping_answers_for_what_it_noises(ran):
  stage = 'stages=[{use="adaptive_clip", options={noise_multiplier=0.3, expected=4}}]'
  folder, _ = ran('selection.name=poisson', stage)
  last = read_metrics(folder / 'metrics.jsonl')[-1]
  own = [x for x in last if x.startswith('adaptive_clip/')]
  assert own and set(own) & set(last['covered'])


def test_under_a_claim_a_bad_client_is_counted_and_not_named(make):
  ready = get_ready(make(*BASE, 'selection.name=poisson', CENTRAL), None, {})
  _, rows = ready.sim.run(ready.sim.init(ready.parts.params), 1)
  rows |= {'zeroed': np.array([2]), 'not_finite': np.where(rows['ids'] >= 0, rows['ids'], -1)}
  ready.ledgers.charge(1, 1)
  records = Records(ready.sim, Traffic(ready.sim), ready.ledgers)
  (record,) = records.make(1, rows, 1.0)
  records.mark(record)
  assert record['zeroed'] == 2 and 'zeroed' not in record['covered']
  assert 'not_finite' not in record
  assert 'zeroed' in records.coverage()['coverage']['not covered']
  page = render([record])
  assert '2 updates were not finite and counted as zeros (not covered by ε)' in page


def test_a_bad_client_does_not_end_a_claimed_run(ran, layers):
  everyone = '{use="user_layers:nan_clients", options={ids=[0,1,2,3,4,5,6,7,8,9,10,11]}}'
  folder, said = ran(
    'selection.name=poisson', f'stages=[{everyone}, {NOISE.format("central", 2.0)}]'
  )
  records = read_metrics(folder / 'metrics.jsonl')
  assert [x['round'] for x in records] == [1, 2]
  assert not any('not_finite' in x for x in records) and 'left out' not in said
