"""Records say which of their metrics a claim of privacy covers, and so does all that shows them."""

import dataclasses
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.core import Bound, Bounds, Layer, Stage
from fedjax_mem.report.html import render
from fedjax_mem.report.tables import runs_table
from fedjax_mem.report.tracker import read_metrics
from fedjax_mem.runner.loop import run
from fedjax_mem.runner.prepare import facts, get_ready
from fedjax_mem.runner.records import Records, check_names
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


@pytest.mark.slow
def test_what_is_computed_from_single_updates_is_not_covered_and_all_say_so(ran):
  folder, said = ran('selection.name=poisson', CENTRAL, 'evaluation.clients=0.2')
  first, last = read_metrics(folder / 'metrics.jsonl')
  covered = {'round', 'epsilon', 'delta', 'learning_rate'}
  assert set(first['covered']) == covered
  assert set(last['covered']) == covered | {'test_loss', 'test_accuracy', 'test_macro_f1'}
  bare = {'train_loss', 'clients', 'examples', 'bytes_up', 'bytes_down', 'seconds'}
  bare |= {'client_accuracy_mean', 'client_loss_worst', 'clients_evaluated', 'clients_left_out'}
  assert bare <= set(last) - set(last['covered'])
  assert 'not_finite' not in last and 'selected' not in last
  told = json.loads((folder / 'manifest.json').read_text())['coverage']
  assert set(told['covered']) == set(last['covered'])
  assert set(told['not covered']) == set(last) - set(last['covered']) - {'covered'}
  assert {'checkpoints', 'client_scores.json', 'partition.png'} <= set(told['files not covered'])
  for words in ('clients/s (not covered)', f'loss {last["train_loss"]:.4f} (not covered)',
                f'test loss {last["test_loss"]:.4f} ·', f'accuracy {last["test_accuracy"]:.2%} ·',
                f'ε {last["epsilon"]:.4g} ·', 'B (not covered) ·'):  # fmt: skip
    assert words in ' '.join(said.split()), words
  page = render(folder)
  for words in ('training loss (not covered by ε)', '>train_loss (not covered by ε)<',
                'sent by clients (not covered by ε)', '>clients (not covered by ε)<',
                'Partition of the data (not covered by ε)', '>final accuracy<', '>test loss<',
                'clients: worst 10 % (not covered by ε)', '>client_loss_spread (not covered by ε)<',
                '>test_accuracy<', '>epsilon<'):  # fmt: skip
    assert words in page, words
  for style in ('text', 'markdown', 'csv'):
    table = runs_table(folder, style)
    assert 'train_loss (not covered by ε)' in table and 'test_loss (not' not in table


def spy(name, *metrics):
  """A layer that tells how large each update is, under names of its choice."""

  def apply(ctx, message, state):
    size = sum(jnp.abs(x).sum() for x in jax.tree.leaves(message.update))
    return message, state, dict.fromkeys(metrics, size)

  silent = Bounds(lambda ctx, bound: Bound(), 'it states nothing')
  return Layer(name, client=Stage(apply, facts=(silent,)))


@pytest.fixture
def spied(monkeypatch):
  """Returns the overrides of a run under a claim with a `spy` before the clip."""

  def overrides(name, *metrics):
    module = types.SimpleNamespace(made=lambda: spy(name, *metrics))
    monkeypatch.setitem(sys.modules, 'my_spy', module)
    stages = f'stages=[{{use="my_spy:made"}}, {NOISE.format("central", 2.0)}]'
    return ('selection.name=poisson', stages)

  return overrides


@pytest.mark.slow
def test_a_metric_is_not_covered_for_its_name(ran, spied):
  folder, _ = ran(*spied('test_spy', 'size', 'algorithm/test_leak', 'algorithm/epsilons'))
  _, last = read_metrics(folder / 'metrics.jsonl')
  told = {'test_spy/size', 'test_leak', 'epsilons'}
  assert told <= set(last) and not told & set(last['covered'])
  assert 'test_accuracy' in last['covered']
  said = json.loads((folder / 'manifest.json').read_text())['coverage']
  assert told <= set(said['not covered']) and not told & set(said['covered'])


@pytest.mark.parametrize(
  'name', ['round', 'delta', 'clients', 'seconds', 'bytes_up', 'covered', 'test_accuracy']
)
def test_a_metric_named_as_what_the_runner_adds_is_refused_before_the_first_round(
  make, spied, tmp_path, name
):
  config = make(*BASE, *spied('spy', f'algorithm/{name}'))
  with pytest.raises(ValueError, match=f'metrics of a round must have names .*, got {name!r}'):
    run(config, tmp_path / 'runs', quiet=True)
  assert not (tmp_path / 'runs').exists()


def test_two_metrics_of_one_name_and_those_of_local_ledgers_are_refused(make):
  ready = get_ready(make(*BASE, 'selection.name=uniform', LOCAL), None, {})
  check_names(ready.sim.setting.metrics, ('loss',), ready.ledgers)
  for metrics, taken in (
    (['algorithm/x/size', 'x/size'], 'x/size'),
    (['local/participations'], 'local/participations'),
    (['algorithm/test_loss'], 'test_loss'),
  ):
    with pytest.raises(ValueError, match=f'must have names .*, got {taken!r}'):
      check_names(metrics, ('loss',), ready.ledgers)


@pytest.mark.slow
@pytest.mark.first(1)
@pytest.mark.parametrize('data', ['synthetic', 'digits'])
def test_scores_on_test_examples_of_clients_are_not_covered(ran, data):
  folder, _ = ran('rounds=1', f'data.name={data}', 'selection.name=poisson', CENTRAL)
  (last,) = read_metrics(folder / 'metrics.jsonl')
  covered = data == 'digits'  # those of 'synthetic' are divided over the clients
  assert [x in last['covered'] for x in ('test_loss', 'test_accuracy')] == [covered, covered]
  assert ('>test loss (not covered by ε)<' in render(folder)) is not covered


@pytest.mark.slow
def test_facts_of_the_manifest_that_tell_of_clients_are_not_covered(ran):
  folder, _ = ran('selection.name=poisson', CENTRAL)
  manifest = json.loads((folder / 'manifest.json').read_text())
  bare = set(manifest['coverage']['facts not covered'])
  assert {'clients', 'examples'} <= bare <= {*manifest, 'labels'}
  page = render(folder)
  for name in ('clients', 'examples'):
    assert f'<code>{name} (not covered by ε)</code>' in page
    assert f'<code>{name}</code>' not in page
  assert '<code>parameters</code>' in page


@pytest.mark.parametrize('claims', [True, False])
def test_what_is_stated_before_the_first_round_says_if_it_is_covered(make, claims):
  stages = [*BASE, 'selection.name=poisson', CENTRAL] if claims else []
  ready = get_ready(make('rounds=1', *stages), None, {})
  data = dataclasses.replace(ready.parts.data, unused_labels=(3,))
  stated = facts(ready._replace(parts=ready.parts._replace(data=data)))
  assert ('coverage' in stated) is claims
  note = 'no client holds examples of the labels [3]'
  assert (f'{note} (not covered by ε)' if claims else note) in stated['warnings']


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_bad_client_does_not_end_a_claimed_run(ran, layers):
  everyone = '{use="user_layers:nan_clients", options={ids=[0,1,2,3,4,5,6,7,8,9,10,11]}}'
  folder, said = ran(
    'selection.name=poisson', f'stages=[{everyone}, {NOISE.format("central", 2.0)}]'
  )
  records = read_metrics(folder / 'metrics.jsonl')
  assert [x['round'] for x in records] == [1, 2]
  assert not any('not_finite' in x for x in records) and 'left out' not in said
