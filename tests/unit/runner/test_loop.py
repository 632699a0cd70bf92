"""The host loop: what a run leaves, resuming bit for bit, segments, streaming, bad clients."""

import dataclasses
import json
import math
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from jax import monitoring

from fedjax_mem.config.load import config_hash, load_config
from fedjax_mem.engine import evaluator
from fedjax_mem.engine.mesh import make_mesh
from fedjax_mem.report.tracker import MetricsWriter, read_metrics
from fedjax_mem.runner import devices, loop
from fedjax_mem.runner import folder as folders
from fedjax_mem.runner.checkpoint import Checkpoints
from fedjax_mem.runner.disk import DiskFull
from fedjax_mem.runner.folder import create
from fedjax_mem.runner.loop import Interrupted, RunFailed, resume, run

pytestmark = pytest.mark.usefixtures('undrawn')


@pytest.fixture
def out(tmp_path):
  return tmp_path / 'runs'


def manifest(folder):
  return json.loads((folder / 'manifest.json').read_text())


def edit_manifest(folder, **changes):
  (folder / 'manifest.json').write_text(json.dumps({**manifest(folder), **changes}))


def bits(params):
  return [(x.shape, x.dtype, np.asarray(x).tobytes()) for x in jax.tree.leaves(params)]


def timeless(records):
  # As text: NaN is equal to NaN there.
  return [json.dumps({k: x for k, x in r.items() if k != 'seconds'}) for r in records]


def same(a, b) -> None:
  """Two results are equal bit for bit, times aside."""
  assert bits(a.params) == bits(b.params)
  assert timeless(a.metrics) == timeless(b.metrics)


@pytest.fixture
def stop_at(monkeypatch):
  """Returns how to do something right after the record of a round was written."""

  def after(round, action):
    write = MetricsWriter.write

    def wrapped(self, record):
      write(self, record)
      if record['round'] == round:
        action()

    monkeypatch.setattr(MetricsWriter, 'write', wrapped)
    return monkeypatch

  return after


class Killed(BaseException):
  """Stands for a death that nothing in the package may catch."""


def die():
  raise Killed


def killed_run(config, out, stop_at, round):
  """Runs until `round` and dies there; returns the folder."""
  patch = stop_at(round, die)
  with patch.context() as _, pytest.raises(Killed):
    run(config, out)
  patch.undo()
  (folder,) = out.iterdir()
  return folder


# What a run leaves.


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A run of 7 rounds, evaluated every 3, that has finished."""
  file = tmp_path_factory.mktemp('config') / 'small.toml'
  file.write_text(
    "version = 1\nname = 'small'\nrounds = 7\n[data]\nname = 'digits'\nnum_clients = 12\n"
    "[model]\nname = 'logistic'\n[selection]\ncohort_size = 4\n[evaluation]\nevery = 3\n"
    '[execution]\ndevices = 1\n'
  )
  config = load_config(file)
  return config, run(config, tmp_path_factory.mktemp('runs'))


@pytest.mark.slow
def test_the_folder_holds_what_was_promised(finished):
  config, result = finished
  assert result.folder.name == f'small-{config_hash(config)}'
  names = {x.name for x in result.folder.iterdir()}
  assert names >= {
    'config.toml', 'manifest.json', 'metrics.jsonl', 'checkpoints', 'learning_curve.png',
    'report.html',
  }  # fmt: skip
  assert load_config(result.folder / 'config.toml') == config
  assert (result.folder / 'learning_curve.png').read_bytes().startswith(b'\x89PNG')
  page = (result.folder / 'report.html').read_text()
  assert 'data:image/png;base64,' in page and '</html>' in page
  assert not any(x in page for x in ('src="http', 'href="http', '<script', '<link', '@import'))
  assert 'not finished' not in page


@pytest.mark.slow
def test_the_manifest_says_how_it_was_made(finished):
  config, result = finished
  said = manifest(result.folder)
  assert said['status'] == 'finished' and said['rounds_done'] == 7
  assert said['seed'] == 0 and said['config_hash'] == config_hash(config)
  assert said['warnings'] == [] and said['resumed'] == []
  assert said['clients'] == 12 and said['examples'] == 1438 and said['parameters'] == 650
  assert said['backend'] == 'cpu' and len(said['devices']) == 1
  assert said['execution']['devices'] == 1 and said['execution']['max_rounds'] == 3
  assert {'jax', 'jaxlib', 'flax', 'optax', 'numpy'} <= set(said['packages'])


@pytest.mark.slow
def test_one_record_a_round_with_the_named_fields(finished):
  _, result = finished
  records = read_metrics(result.folder / 'metrics.jsonl')
  assert records == result.metrics
  assert [r['round'] for r in records] == list(range(1, 8))
  for record in records:
    assert record['clients'] == 4
    assert 0 < record['examples'] < 1438 and record['seconds'] > 0
    assert 0 < record['train_loss'] < 5
    assert 'not_finite' not in record
  evaluated = [r['round'] for r in records if 'test_accuracy' in r]
  assert evaluated == [3, 6, 7]  # every third, and the last
  assert evaluated == [r['round'] for r in records if 'test_loss' in r]
  assert records[-1]['test_accuracy'] > 0.5


@pytest.mark.slow
def test_the_result_is_the_newest_checkpoint(finished, state_of):
  _, result = finished
  held = state_of(result.folder)
  assert held['round'] == 7
  flat = jax.tree_util.tree_flatten_with_path(result.params)[0]
  for path, x in flat:
    name = 'params/' + jax.tree_util.keystr(path, simple=True, separator='/')
    assert np.asarray(held[name]).tobytes() == np.asarray(x).tobytes()


@pytest.mark.slow
def test_the_same_run_again_goes_beside_with_the_same_bits(finished):
  config, first = finished
  second = run(config, first.folder.parent)
  assert second.folder.name == f'{first.folder.name}-2'
  same(first, second)


@pytest.mark.slow
def test_another_seed_is_another_run(finished, out):
  config, first = finished
  second = run(dataclasses.replace(config, seed=1), out)
  assert second.folder.name != first.folder.name
  assert bits(second.params) != bits(first.params)


def test_a_finished_run_is_not_resumed(finished):
  with pytest.raises(ValueError, match='it is finished'):
    resume(finished[1].folder)


def test_a_run_on_real_machines_is_not_resumed_as_a_simulation(make, out):
  folder = create(make(), out, deployed=True)
  before = sorted(x.name for x in folder.path.iterdir())
  with pytest.raises(
    ValueError, match=f'go on with `fedjax-mem deploy server {folder.path} --kit DIR`'
  ):
    resume(folder.path)
  assert {*before, 'lock'} == {x.name for x in folder.path.iterdir()}


@pytest.mark.slow
def test_a_run_that_was_ended_before_its_report_is_completed(finished, tmp_path):
  folder = shutil.copytree(finished[1].folder, tmp_path / 'copy')
  (folder / 'report.html').unlink()
  result = resume(folder)
  same(result, finished[1])
  assert (folder / 'report.html').exists()


# Bad input leaves nothing behind.


@pytest.mark.parametrize(
  ('override', 'words'),
  [
    ('selection.cohort_size=13', 'selection.cohort_size must be at most data.num_clients = 12'),
    ('client.batch_size=0', 'client.batch_size must be an integer >= 1 and <= 2147483647, got 0'),
    ('client.learning_rate=-1', 'client.learning_rate must be a finite number > 0, got -1'),
    ('client.learning_rate=nan', 'client.learning_rate must be a finite number > 0, got nan'),
    ('model.options.hiden=[3]', "'hiden'"),
    ('selection.options.sise=1', "selection.options must be among .*'sise'"),
    ('data.name=digit', "Did you mean 'digits'"),
    ('execution.devices=64', r'devices must be an integer >= 1 and <= \d, got 64'),
    ('stages=[{use="no_such.module:layer"}]', r'stages\[0\].use must name a module.*no_such'),
    ('execution.stream_above_mb=0.001', 'execution.stream_above_mb must hold two segments'),
  ],
)
def test_bad_input_is_refused_before_there_is_a_folder(make, out, override, words):
  with pytest.raises(ValueError, match=words):
    if override.startswith('execution.devices'):
      # Only a process in which jax has not started can be told how many devices there are.
      with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, 'prepare', lambda devices: None)
        run(make(override), out)
    else:
      run(make(override), out)
  assert not out.exists() or not any(out.iterdir())


@pytest.mark.slow
def test_data_without_a_test_set_are_refused_before_there_is_a_folder(make, out, layers):
  (layers / 'untested.py').write_text(
    'import numpy as np\nfrom fedjax_mem.data.source import from_arrays\n'
    'def load():\n'
    '  y = np.arange(24) % 2\n'
    '  rows = [np.arange(2 * i, 2 * i + 2) for i in range(12)]\n'
    '  return from_arrays(np.ones((24, 3), np.float32), y, rows)\n'
  )
  with pytest.raises(ValueError, match='at least one example to evaluate on'):
    run(make('data.name="untested:load"', 'data.num_clients='), out)
  assert not out.exists()


def test_labels_out_of_range_are_refused(make, out, layers):
  (layers / 'mislabelled.py').write_text(
    'import numpy as np\nfrom fedjax_mem.data.source import from_arrays\n'
    'def load():\n'
    '  x, y = np.ones((24, 3), np.float32), np.arange(24)\n'
    '  rows = [np.arange(2 * i, 2 * i + 2) for i in range(12)]\n'
    '  return from_arrays(x, y, rows, test=(x, y), num_classes=10)\n'
  )
  with pytest.raises(
    ValueError, match=r'labels .* must be in \[0, num_classes = 10\), got 0 to 23'
  ):
    run(make('data.name="mislabelled:load"', 'data.num_clients='), out)


def test_a_model_that_does_not_fit_the_labels_is_refused(make, out, layers):
  (layers / 'narrow.py').write_text(
    'import jax.numpy as jnp\nfrom fedjax_mem.models import base\n'
    'def model(input_shape, num_classes):\n'
    "  init = lambda key: {'w': jnp.zeros((64, 7))}\n"
    "  apply = lambda p, x, key=None: x.reshape(x.shape[0], -1) @ p['w']\n"
    "  return base.build('narrow', init, apply, input_shape, num_classes)\n"
    'def other(input_shape, num_classes):\n'
    '  return model(input_shape, 7)\n'
    'def none():\n'
    '  return 3\n'
  )
  with pytest.raises(
    ValueError, match=r'output of the model .* must be \[B, 10\] to fit the labels'
  ):
    run(make('model.name="narrow:model"'), out)
  with pytest.raises(
    ValueError, match=r'for inputs .* and 10 labels to fit the data, got one for .* and 7'
  ):
    run(make('model.name="narrow:other"'), out)
  with pytest.raises(ValueError, match=r'must name a factory of a Model, got .* made 3'):
    run(make('model.name="narrow:none"'), out)


# Resuming.

PARTS = (
  'server.optimizer=fedadam',
  'server.learning_rate=0.1',
  'selection.name=round_robin',
  'selection.cohort_size=5',
  'stages=[{use="user_layers:counting"}]',
  'execution.checkpoint_every_seconds=0',
  'execution.max_segment_rounds=2',
  'evaluation.every=3',
  'client.learning_rate_schedule=linear',
)


@pytest.fixture(scope='module')
def whole(tmp_path_factory, layers):
  """An uninterrupted run with every kind of state."""
  file = tmp_path_factory.mktemp('config') / 'whole.toml'
  file.write_text(
    "version = 1\nname = 'whole'\nrounds = 9\n[data]\nname = 'digits'\nnum_clients = 12\n"
    "[model]\nname = 'logistic'\n[selection]\ncohort_size = 5\n[execution]\ndevices = 1\n"
  )
  config = load_config(file, PARTS)
  return config, run(config, tmp_path_factory.mktemp('runs'))


@pytest.mark.slow
def test_every_kind_of_state_matters(whole, state_of):
  held = state_of(whole[1].folder)
  assert held['servers/select'] == 9 * 5 % 12
  counts = held['clients/counting'][:, 0]
  assert counts.sum() == 9 * 5 and counts.min() >= 3
  assert any('algorithm' in name and np.abs(x).sum() > 0 for name, x in held.items())


# Round 1 comes before the first checkpoint; the checkpoints follow rounds 1, 3, 5, 6, 8 and 9.
@pytest.mark.slow
@pytest.mark.parametrize('round', [1, 4, 9])
def test_a_killed_run_is_resumed_bit_for_bit(whole, out, stop_at, round):
  folder = killed_run(whole[0], out, stop_at, round)
  with pytest.raises(ValueError, match=f'not finished: go on with `fedjax-mem resume {folder}`'):
    run(whole[0], out)
  result = resume(folder)
  same(result, whole[1])
  (done,) = manifest(folder)['resumed']
  assert 0 <= done < round
  assert manifest(folder)['status'] == 'finished'


@pytest.mark.slow
def test_a_run_killed_before_its_first_round_is_resumed(whole, out, monkeypatch):
  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(loop, 'facts', lambda ready: die())
    run(whole[0], out)
  (folder,) = out.iterdir()
  same(resume(folder), whole[1])


@pytest.mark.slow
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_used(whole, out, stop_at):
  folder = killed_run(whole[0], out, stop_at, 8)
  newest, before = Checkpoints(folder / 'checkpoints').numbers()[:2]
  for path in (folder / 'checkpoints' / str(newest) / 'state').rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:-7])
  result = resume(folder)
  same(result, whole[1])
  assert manifest(folder)['resumed'] == [before]
  (warning,) = manifest(folder)['warnings']
  assert warning.startswith(f'checkpoint {newest} is refused')
  assert f'checkpoint {newest} is refused' in (folder / 'report.html').read_text()


@pytest.mark.slow
def test_a_run_of_before_run_ids_is_resumed(whole, out, stop_at):
  with pytest.MonkeyPatch.context() as patch:
    facts = folders._facts
    patch.setattr(
      folders, '_facts', lambda config: {k: x for k, x in facts(config).items() if k != 'run_id'}
    )
    folder = killed_run(whole[0], out, stop_at, 8)
  assert 'run_id' not in manifest(folder)
  same(resume(folder), whole[1])
  assert manifest(folder)['resumed'][0] > 0 and 'run_id' not in manifest(folder)


@pytest.mark.slow
def test_a_changed_configuration_is_not_resumed(whole, out, stop_at):
  folder = killed_run(whole[0], out, stop_at, 4)
  file = folder / 'config.toml'
  text = file.read_text()
  file.write_text(text.replace('rounds = 9', 'rounds = 12'))
  with pytest.raises(ValueError, match=r'config.toml must be what the run began with'):
    resume(folder)
  # What changes speed only may change.
  file.write_text(text.replace('keep_checkpoints = 3', 'keep_checkpoints = 5'))
  same(resume(folder), whole[1])


@pytest.mark.devices(2)
@pytest.mark.slow
def test_another_number_of_devices_goes_on_and_says_so(whole, out, stop_at):
  folder = killed_run(whole[0], out, stop_at, 4)
  edit_manifest(folder, execution={**manifest(folder)['execution'], 'devices': 16})
  result = resume(folder)
  assert len(result.metrics) == 9
  used = min(5, jax.device_count())  # as many as clients in a cohort
  assert any(
    f'resumed on {used} device(s), not 16: sums may differ in their last bits' in x
    for x in manifest(folder)['warnings']
  )
  for a, b in zip(jax.tree.leaves(result.params), jax.tree.leaves(whole[1].params), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_another_backend_is_said(whole, out, stop_at):
  folder = killed_run(whole[0], out, stop_at, 4)
  edit_manifest(folder, backend='tpu')
  resume(folder)
  assert any('resumed on cpu, not tpu' in x for x in manifest(folder)['warnings'])


@pytest.mark.slow
@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_after_a_checkpoint_and_says_how_to_go_on(
  whole, out, stop_at, state_of, number, code
):
  before = signal.getsignal(number)
  rarely = dataclasses.replace(whole[0].execution, checkpoint_every_seconds=1000.0)
  patch = stop_at(4, lambda: os.kill(os.getpid(), number))
  words = r': stopped after round \d, which is in a checkpoint; go on with: fedjax-mem resume'
  with pytest.raises(Interrupted, match=words) as error:
    run(dataclasses.replace(whole[0], execution=rarely), out)
  patch.undo()
  assert signal.getsignal(number) is before and error.value.code == code
  (folder,) = out.iterdir()
  said = manifest(folder)
  assert said['status'] == 'interrupted'
  assert state_of(folder)['round'] == said['rounds_done'] >= 5
  same(resume(folder), whole[1])


# Segments, compilations, streaming.


@pytest.mark.slow
def test_segments_of_any_length_give_the_same_bits(make, out):
  common = ('evaluation.every=6', 'execution.segment_seconds=100')
  results = [
    run(make(*common, f'execution.max_segment_rounds={n}'), out / str(n)) for n in (64, 1, 3)
  ]
  longest = [manifest(x.folder)['execution']['max_rounds'] for x in results]
  assert longest == [6, 1, 3]
  assert len({x.folder.name for x in results}) == 1  # speed is not in the hash
  same(results[1], results[0])
  same(results[2], results[0])


def test_a_round_is_compiled_once(make, out):
  compiled = []

  def count(event, duration, fun_name='', **_):
    if event == '/jax/core/compile/backend_compile_duration':
      compiled.append(fun_name)

  monitoring.register_event_duration_secs_listener(count)
  try:
    run(make('rounds=2'), out)
  finally:
    monitoring.unregister_event_duration_listener(count)
  assert sum('_segment' in name for name in compiled) == 1, compiled


@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_segment(make, out, stop_at):
  compiled = []

  def count(event, duration, **_):
    if event == '/jax/core/compile/backend_compile_duration':
      compiled.append(duration)

  monitoring.register_event_duration_secs_listener(count)
  marks = []
  stop_at(1, lambda: marks.append(len(compiled)))  # evaluated already
  stop_at(6, lambda: marks.append(len(compiled)))
  try:
    run(make('selection.name=poisson', 'data.partition=dirichlet', 'data.alpha=0.3'), out)
    assert marks[0] > 0  # the listener hears of compilations
    # Saving a checkpoint after the first segment compiles nothing either.
    assert marks[0] == marks[1]
  finally:
    monitoring.unregister_event_duration_listener(count)


STREAM = (
  'rounds=7', 'evaluation.every=7', 'data.num_clients=30', 'data.partition=dirichlet',
  'data.alpha=1', 'selection.cohort_size=3',
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
  'sampler',
  [
    ('selection.name=round_robin',),
    ('selection.name=poisson', 'selection.cohort_size=1', 'data.num_clients=60'),
  ],
)
def test_streaming_gives_the_same_bits(make, out, stop_at, sampler):
  common = (*STREAM, *sampler, 'execution.checkpoint_every_seconds=0')
  reference = run(make(*common), out / 'resident')
  config = make(*common, 'execution.stream_above_mb=0.099')
  streamed = run(config, out / 'streamed')
  assert manifest(streamed.folder)['execution']['max_rounds'] < 7  # as many as the cap holds
  same(streamed, reference)
  folder = killed_run(config, out / 'killed', stop_at, 6)
  same(resume(folder), reference)
  assert manifest(folder)['resumed'][0] > 0


# Evaluation.


@pytest.mark.parametrize(
  ('total', 'batch', 'devices'), [(10, 5, 1), (23, 5, 1), (23, 4, 'auto'), (3, 500, 'auto')]
)
@pytest.mark.devices(2)
def test_the_evaluator_is_a_mean_over_the_examples(total, batch, devices):
  rng = np.random.default_rng(total)
  x = rng.normal(size=(total, 4)).astype(np.float32)
  y = rng.integers(0, 3, total).astype(np.int32)
  w = rng.normal(size=(4, 3)).astype(np.float32)

  def metrics(params, arrays):
    logits = arrays['x'] @ params
    return {'right': (logits.argmax(-1) == arrays['y']).astype(np.float32), 'sum': logits.sum(-1)}

  got = evaluator(metrics, {'x': x, 'y': y}, batch_size=batch, mesh=make_mesh(devices))(w)
  logits = x.astype(np.float64) @ w
  assert got['right'] == pytest.approx((logits.argmax(-1) == y).mean(), abs=1e-6)
  assert got['sum'] == pytest.approx(logits.sum(-1).mean(), abs=1e-5)


# Updates that are not finite.


def stage(text):
  return f'stages=[{{{text}}}]'


@pytest.mark.slow
def test_a_client_that_sends_nan_is_left_out_counted_and_named(make, out, layers, capsys):
  config = make(
    'selection.name=round_robin', 'selection.cohort_size=6', 'rounds=4',
    stage('use="user_layers:nan_clients", options={ids=[2, 9], start=2}'),
  )  # fmt: skip
  result = run(config, out)
  counts = [(r['clients'], r.get('not_finite')) for r in result.metrics]
  assert counts == [(6, None), (6, None), (5, [2]), (5, [9])]
  assert all(math.isfinite(r['train_loss']) for r in result.metrics)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(result.params))
  page = (result.folder / 'report.html').read_text()
  assert '2 updates were not finite and were left out, first in round 3 (clients 2, 9).' in page
  assert 'round 3: left out, not finite: the updates of 2' in capsys.readouterr().out


@pytest.mark.slow
def test_named_clients_are_named(make, out, layers, capsys):
  config = make(
    'data.name=synthetic', 'data.num_clients=4', 'rounds=1',
    stage('use="user_layers:nan_clients", options={ids=[3]}'),
  )  # fmt: skip
  run(config, out)
  assert 'the updates of f_00003' in capsys.readouterr().out


@pytest.mark.slow
def test_the_run_stops_when_no_client_sends_a_finite_update(make, out, layers, state_of):
  config = make(stage('use="user_layers:nan_clients", options={ids=%s, start=3}' % [*range(12)]))
  with pytest.raises(RunFailed, match='no client of round 4 sent a finite update') as error:
    run(config, out)
  (folder,) = out.iterdir()
  assert str(folder) in str(error.value)
  said = manifest(folder)
  assert said['status'] == 'failed' and 'round 4' in said['failure']
  held = state_of(folder)
  assert all(np.isfinite(x).all() for name, x in held.items() if name.startswith('params'))
  assert read_metrics(folder / 'metrics.jsonl')[-1]['clients'] == 0


@pytest.mark.slow
def test_a_diverging_run_stops_and_names_the_remedy(make, out):
  with pytest.raises(RunFailed, match=r'round \d+ .*A smaller client.learning_rate'):
    run(make('client.learning_rate=1e38'), out)


@pytest.mark.slow
@pytest.mark.parametrize('longest', [1, 64])
def test_a_model_that_is_not_finite_stops_at_the_last_good_checkpoint(
  make, out, layers, state_of, longest
):
  config = make(
    stage('use="user_layers:nan_server", options={round=4}'), 'evaluation.every=6',
    'execution.checkpoint_every_seconds=0', f'execution.max_segment_rounds={longest}',
  )  # fmt: skip
  words = (
    "the server's parameters are not finite after round 5; the last good checkpoint is that of"
  )
  with pytest.raises(RunFailed, match=words):
    run(config, out)
  (folder,) = out.iterdir()
  held = state_of(folder)
  assert 1 <= held['round'] <= 4
  assert all(np.isfinite(x).all() for x in held.values())
  assert manifest(folder)['status'] == 'failed'
  assert read_metrics(folder / 'metrics.jsonl')[-1]['round'] == 5
  # Everything follows from the seed, so it fails again, and loses nothing by it.
  with pytest.raises(RunFailed, match='after round 5'):
    resume(folder)
  assert state_of(folder)['round'] >= held['round']


# Devices.


@pytest.mark.devices(2)
@pytest.mark.slow
def test_where_jax_has_started_its_devices_are_used_and_that_is_said(make, out, monkeypatch):
  there = jax.device_count()
  monkeypatch.setattr(devices, 'cores', lambda: 3)
  result = run(make('execution.devices=auto', 'rounds=1'), out)
  said = manifest(result.folder)
  assert said['execution']['devices'] == min(4, there)  # at most as many as clients in a cohort
  assert said['warnings'] == [f'jax had started already: using its {there} device(s), not 3']
  result = run(make('execution.devices=12', 'rounds=1', 'seed=1'), out)
  assert manifest(result.folder)['warnings'] == [
    f'jax had started already: using its {there} device(s), not 12'
  ]


# Disks.


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error_and_the_run_can_go_on(whole, out, monkeypatch):
  save = Checkpoints.save

  def full(self, state):
    if int(state.round) >= 4:
      raise loop_error
    return save(self, state)

  loop_error = OSError(28, 'No space left on device')
  words = 'is full .No space left on device.: free some space, then go on with `fedjax-mem resume'
  with monkeypatch.context() as patch, pytest.raises(DiskFull, match=words):
    patch.setattr(Checkpoints, 'save', full)
    run(whole[0], out)
  (folder,) = out.iterdir()
  same(resume(folder), whole[1])
