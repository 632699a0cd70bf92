"""Scores over clients against float64 NumPy, in parts, on devices, streamed, and in whole runs."""

import json
import math

import jax
import numpy as np
import pytest
from sklearn.metrics import f1_score

from fedjax_mem.config.build import build
from fedjax_mem.engine import evaluate, make_mesh, per_example
from fedjax_mem.runner import client_scores
from fedjax_mem.runner.client_scores import Scorer, names, over_clients
from fedjax_mem.runner.loop import run
from fedjax_mem.runner.records import check_names

pytestmark = pytest.mark.usefixtures('undrawn')
RAGGED = (
  'data.partition=quantity_skew', 'data.alpha=0.5', 'data.min_examples=1', 'data.num_clients=40',
  'seed=6', 'evaluation.clients=0.25', 'evaluation.every=3', 'rounds=3',
)  # fmt: skip


def twin(data, params):
  """Returns the scores by loops in float64: of a softmax regression on x / 16."""
  leaves = sorted((np.asarray(x, np.float64) for x in jax.tree.leaves(params)), key=np.ndim)
  bias, kernel = leaves
  each = []
  for client in range(data.num_clients):
    begin, end = data.held.offsets[client : client + 2]
    found = []
    for row in data.held.index[begin:end]:
      x = np.asarray(data.preprocess({'x': data.arrays['x'][row : row + 1]})['x'], np.float64)
      z, y = x.reshape(-1) @ kernel + bias, data.arrays['y'][row]
      loss = math.log(sum(math.exp(v) for v in z)) - z[y]
      found.append((loss, float(z.argmax() == y), z.argmax(), y))
    each.append(found)
  some = [np.array(x) for x in each if x]
  f1 = lambda x: f1_score(x[:, 3], x[:, 2], average='macro')
  scores = {}
  of = {'loss': lambda x: x[:, 0].mean(), 'accuracy': lambda x: x[:, 1].mean(), 'macro_f1': f1}
  for name, score in of.items():
    means = sorted(score(x) for x in some)
    bad = means[::-1] if name == 'loss' else means
    scores |= {
      f'client_{name}_mean': sum(means) / len(means),
      f'client_{name}_pooled': score(np.concatenate(some)),
      f'client_{name}_worst': np.mean(bad[: math.ceil(len(means) / 10)]),
      f'client_{name}_spread': math.sqrt(
        sum((x - np.mean(means)) ** 2 for x in means) / len(means)
      ),
    }
  return {**scores, 'clients_evaluated': len(some), 'clients_left_out': len(each) - len(some)}


@pytest.mark.slow
@pytest.mark.devices(2)
def test_scores_are_those_of_the_twin_in_parts_and_on_devices(make, monkeypatch):
  parts = build(make(*RAGGED))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(0, 1, x.shape).astype(np.float32), parts.params)
  wanted = twin(parts.data, params)
  assert 0 < wanted['clients_left_out'] < 30 and wanted['client_accuracy_spread'] > 0
  found = [Scorer(parts, 50, make_mesh(1))(params)]
  monkeypatch.setattr(evaluate, '_PART', 64)
  found += [Scorer(parts, 50, make_mesh(n))(params) for n in (1, 2)]
  assert found[0] == found[1] == found[2]
  assert tuple(found[0]) == names(parts)
  assert found[0] == pytest.approx(wanted, rel=1e-5)
  nothing = Scorer(build(make()), 50, make_mesh(1))
  assert names(build(make())) == () and nothing(params) == {} and not len(nothing.each(params)[1])


def test_the_worst_tenth_is_of_large_losses_and_small_values():
  values = {'loss': np.arange(12.0), 'accuracy': np.arange(12.0)}
  got = over_clients(values, {}, np.array([0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]))
  assert got['client_loss_worst'] == 10.5 and got['client_accuracy_worst'] == 0.5
  assert (got['clients_evaluated'], got['clients_left_out']) == (12, 1)
  pair = over_clients({'loss': np.array([0.0, 0, 3])}, {}, np.array([0, 2, 3]))
  assert pair['client_loss_mean'] == 1.5 and pair['client_loss_pooled'] == 1.0
  assert pair['client_loss_spread'] == 1.5 and pair['client_loss_worst'] == 3.0


def test_no_example_and_a_name_that_is_taken_are_refused():
  with pytest.raises(ValueError, match='rows must be at least one example'):
    per_example(lambda p, b: b, {}, np.zeros(0, int), batch_size=1, mesh=make_mesh(1))
  with pytest.raises(ValueError, match=r"names .* got 'client_loss_mean'"):
    check_names(['client_loss_mean'], (), None, ['client_loss_mean'])


@pytest.mark.slow
@pytest.mark.devices(2)
def test_a_run_records_the_scores_of_its_parameters_in_every_mode(make, tmp_path):
  modes = (
    ['execution.mode=vmap'], ['execution.mode=loop'], ['execution.mode=chunk', 'execution.chunk=2'],
    ['execution.mode=vmap', 'execution.devices=2'], ['execution.stream_above_mb=0.07'],
  )  # fmt: skip
  first = None
  for i, mode in enumerate(modes):
    config = make(*RAGGED, *mode)
    result = run(config, tmp_path / str(i), quiet=True)
    last = {k: x for k, x in result.metrics[-1].items() if k.startswith(('client_', 'clients_'))}
    assert last == pytest.approx(twin(build(config).data, result.params), rel=1e-5)
    first = first or last
    assert last == pytest.approx(first, rel=1e-5)
    assert not any(k.startswith('client_') for k in result.metrics[0])  # every third round
  notes = (result.folder / 'manifest.json').read_text()
  assert f'{last["clients_left_out"]} clients have too few examples to hold one out' in notes


def test_what_the_report_shows_of_each_client(make, tmp_path):
  parts = build(make(*RAGGED))
  scorer = Scorer(parts, 50, make_mesh(1))
  client_scores.write(tmp_path, scorer, scorer.each(parts.params), 3)
  told = json.loads((tmp_path / client_scores.FILE).read_text())
  over = scorer(parts.params)
  assert len(told['values']) == over['clients_evaluated']
  assert np.mean(told['values']) == pytest.approx(over['client_accuracy_mean'])
  assert (told['score'], told['less_is_better'], told['round']) == ('accuracy', False, 3)
  assert scorer.less_is_better('loss') and not scorer.less_is_better('macro_f1')
  without = tmp_path / 'without'
  without.mkdir()
  none = Scorer(build(make()), 50, make_mesh(1))
  client_scores.write(without, none, none.each(parts.params), 3)
  assert list(without.iterdir()) == []
