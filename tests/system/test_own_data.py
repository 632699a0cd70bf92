"""Users' own data in whole runs: the examples, every task in every mode, resumed and swept."""

import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from reference import tiny
from sklearn import metrics

import fedjax_mem as fm
from fedjax_mem.config.build import load_data
from fedjax_mem.runner.checkpoint import Checkpoints

HERE = Path(__file__).parents[2] / 'scripts' / 'examples'
pytestmark = [pytest.mark.usefixtures('undrawn'), pytest.mark.slow]
PRECISION = 'mean_average_precision'
# Example -> its score in the last round, and the least that it must reach.
EXAMPLES = {
  'own_table': ('test_r2', 0.9),
  'own_arrays': ('test_macro_f1', 0.7),
  'own_texts': ('test_accuracy', 0.1),
  'own_images': ('test_accuracy', 0.9),
  'own_tfds': ('test_mean_average_precision', 0.8),
}


@pytest.fixture(autouse=True)
def own(monkeypatch):
  monkeypatch.syspath_prepend(str(HERE))


@pytest.mark.parametrize('name', EXAMPLES)
def test_each_example_learns_and_gives_the_same_from_python(name, tmp_path):
  by_file, by_python = importlib.import_module(name).main(tmp_path)
  key, least = EXAMPLES[name]
  assert by_file.metrics[-1][key] >= least
  tiny.assert_same_bits(by_python.params, by_file.params)
  timeless = lambda rows: [{k: v for k, v in row.items() if k != 'seconds'} for row in rows]
  assert timeless(by_file.metrics) == timeless(by_python.metrics)


def table(task):
  """Returns 90 rows of six shops of different sizes, with two targets."""
  rng = np.random.default_rng(5)
  x = rng.normal(size=(90, 3))
  y = x[:, :2] * [1.0, -2.0] + rng.normal(0, 0.3, (90, 2)) + [0.0, 4.0]
  y = y if task == 'regression' else (y > y.mean(0)).astype(int)
  shop = np.repeat([f's{i}' for i in range(6)], [30, 20, 15, 10, 10, 5])
  columns = {'shop': shop, **{f'f{i}': x[:, i] for i in range(3)}, 'a': y[:, 0], 'b': y[:, 1]}
  return fm.data.from_table(columns, ['a', 'b'], client='shop', task=task)


def config(tmp_path, *overrides, data='given'):
  text = f"""
    version = 1
    rounds = 4
    data = {{ name = "{data}" }}
    model = {{ name = "logistic" }}
    client = {{ learning_rate = 0.1, learning_rate_schedule = "linear", batch_size = 8 }}
    selection = {{ cohort_size = 4 }}
    evaluation = {{ every = 4, clients = 0.4 }}
    execution = {{ devices = 1 }}
  """
  (tmp_path / 'own.toml').write_text(text)
  return fm.load_config(tmp_path / 'own.toml', overrides)


def scored(result, data, score):
  """Returns the score on the test set and those over clients, by scikit-learn."""
  bias, kernel = sorted(jax.tree.leaves(result.params), key=np.ndim)
  of = lambda arrays, rows: score(
    arrays['y'][rows].astype(np.float64),
    arrays['x'][rows].astype(np.float64) @ np.asarray(kernel, np.float64) + np.asarray(bias),
  )
  held = data.held
  each = np.array(
    [
      of(data.arrays, held.index[held.offsets[i] : held.offsets[i + 1]])
      for i in range(data.num_clients)
    ]
  )
  return of(data.test, slice(None)), of(data.arrays, held.index), each


@pytest.mark.devices(2)
@pytest.mark.parametrize(('task', 'name'), [('regression', 'r2'), ('multi_label', PRECISION)])
def test_labels_that_are_no_classes_go_through_the_whole_engine(task, name, tmp_path):
  given = table(task)
  kinds = {'regression': metrics.r2_score, 'multi_label': average_precision}
  alone = ['execution.mode=loop']
  if task == 'multi_label':
    alone = ['execution.mode=chunk', 'execution.chunk=1', 'execution.devices=2']
  modes = (alone, ['execution.mode=vmap', 'execution.stream_above_mb=0.006'])
  results = []
  for i, mode in enumerate(modes):
    made = config(tmp_path, *mode)
    results.append(fm.run(made, tmp_path / str(i), data=given, quiet=True))
    last = results[-1].metrics[-1]
    data = load_data(made, given=given)
    test, pooled, each = scored(results[-1], data, kinds[task])
    assert last[f'test_{name}'] == pytest.approx(test, rel=1e-4)
    assert last[f'client_{name}_pooled'] == pytest.approx(pooled, rel=1e-4)
    assert last[f'client_{name}_mean'] == pytest.approx(np.nanmean(each), rel=1e-4)
    assert last[f'client_{name}_worst'] == pytest.approx(np.nanmin(each), rel=1e-4, abs=1e-6)
    assert last['train_loss'] == pytest.approx(results[0].metrics[-1]['train_loss'], rel=1e-5)
    rates = [record['learning_rate'] for record in results[-1].metrics]
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])
  said = json.loads((results[0].folder / 'manifest.json').read_text())
  assert said['task'] == task and said['equal_rows'] == 0
  assert said.get('labels') == ['a', 'b'] and said['data_sha256'] == data.digest()


def average_precision(hot, logits):
  some = hot.any(0)
  if not some.any():
    return np.nan
  return metrics.average_precision_score(hot[:, some], logits[:, some], average='macro')


class Killed(BaseException):
  """Ends a run as a kill does: nothing is tidied up."""


def test_a_run_of_data_that_are_given_resumes_with_the_same_data_alone(tmp_path):
  given, save = table('regression'), Checkpoints.save
  made = config(
    tmp_path, 'execution.max_segment_rounds=1', 'execution.checkpoint_every_seconds=0',
    'evaluation.every=1', 'execution.mode=vmap',
  )  # fmt: skip
  whole = fm.run(made, tmp_path / 'whole', data=given, quiet=True)

  def dies(self, state):
    if int(state.round) >= 3:
      raise Killed
    return save(self, state)

  with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
    patch.setattr(Checkpoints, 'save', dies)
    fm.run(made, tmp_path / 'killed', data=given, quiet=True)
  (folder,) = (tmp_path / 'killed').iterdir()
  with pytest.raises(ValueError, match=r"data.name must be 'given' .*got 'given' and no data"):
    fm.resume(folder, quiet=True)
  with pytest.raises(ValueError, match='data must be those that the run was given'):
    fm.resume(folder, data=given._replace(arrays={**given.arrays, 'x': given.arrays['x'] + 1}))
  again = fm.resume(folder, data=given, quiet=True)
  tiny.assert_same_bits(again.params, whole.params)
  with pytest.raises(ValueError, match="and only then, got 'digits' and a Table"):
    fm.run(config(tmp_path, data='digits'), tmp_path, data=given)


def test_a_sweep_chooses_by_the_score_of_the_task(tmp_path):
  import own_table

  flats = own_table.flats()
  rows = [','.join(flats), *(','.join(map(str, x)) for x in zip(*flats.values(), strict=True))]
  (tmp_path / 'flats.csv').write_text('\n'.join(rows))
  said = f'path="{tmp_path}/flats.csv", target="price", client="city", task="regression"'
  said += ', features=["rooms", "age"]'
  made = config(
    tmp_path, f'data.options={{{said}}}', 'data.validation=0.2', 'evaluation.clients=0', data='csv'
  )
  result = fm.sweep(made, {'client.learning_rate': [0.001, 0.05]}, [0], out=tmp_path / 'runs')
  assert result.best.values == {'client.learning_rate': 0.05}
  assert "R² on the server's validation split" in result.chosen_by
  lane = result.best.lanes[0]
  assert 0 < lane.scores['test_r2'] < 1 and 'validation_r2' in lane.scores
  assert 'test R²' in (result.folder / 'table.md').read_text()


def test_attacks_on_classes_are_refused_for_other_labels(tmp_path):
  for stage in (
    '{use="label_flip", options={attackers=1}}',
    '{use="backdoor", options={attackers=1}}',
  ):
    with pytest.raises(
      ValueError, match='must be given labels that are classes, int32, got float32'
    ):
      fm.run(config(tmp_path, f'stages=[{stage}]'), tmp_path / 'out', data=table('regression'))
