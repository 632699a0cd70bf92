"""The command line: what it prints, its exit codes, and real processes that are interrupted."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fedjax_mem.experiment import cli
from fedjax_mem.report.tracker import read_metrics


@pytest.fixture
def call(capsys):
  """Returns what a command gives: (exit code, output, errors)."""

  def main(*words):
    try:
      code = cli.main([str(x) for x in words])
    except SystemExit as end:  # how the argument parser ends
      code = end.code
    said = capsys.readouterr()
    return code, said.out, said.err

  return main


def one_line(err):
  assert err.startswith('fedjax-mem: ') and err.endswith('\n') and err.count('\n') == 1
  assert 'Traceback' not in err
  return err


def only(out):
  (folder,) = out.iterdir()
  return folder


# Commands.


def test_run_then_again_then_report(call, tiny, tmp_path):
  out = tmp_path / 'runs'
  words = ('run', tiny, '--out', out, '--set', 'rounds=2', '--set', 'client.learning_rate=0.2')
  code, said, _ = call(*words)
  assert code == 0
  folder = only(out)
  assert f'folder: {folder}' in ' '.join(said.split())
  assert 'round 2: test accuracy 0.' in said and 'compiling' in said
  text = (folder / 'config.toml').read_text()
  assert 'rounds = 2' in text and 'learning_rate = 0.2' in text
  assert len(read_metrics(folder / 'metrics.jsonl')) == 2

  code, said, _ = call(*words, '--quiet')
  second = folder.with_name(folder.name + '-2')
  assert code == 0 and str(second) in ' '.join(said.split())

  code, said, _ = call('report', folder, second)
  assert code == 0 and folder.name in said and second.name in said
  page = (out / 'report.html').read_text()
  assert folder.name in page and second.name in page

  code, _, err = call('resume', folder)
  assert code == 2 and 'it is finished' in one_line(err)


def test_data_show_draws_the_partition(call, tiny, tmp_path):
  picture = tmp_path / 'picture.png'
  code, said, _ = call('data', 'show', tiny, '--out', picture, '--set', 'data.num_clients=7')
  assert code == 0 and '7 clients, 1438 examples' in said
  assert picture.read_bytes().startswith(b'\x89PNG')


def test_data_list_and_doctor(call, tmp_path):
  code, said, _ = call('data', 'list', '--data-dir', tmp_path)
  assert code == 0 and 'digits' in said and 'built in' in said
  assert 'fedjax-mem data prepare fashion_mnist' in said
  code, said, _ = call('doctor')
  assert code in (0, 1) and 'jax' in said and 'digits' in said


def test_help_teaches(call):
  code, said, _ = call('--help')
  assert code == 0
  assert all(word in said for word in ('run', 'resume', 'report', 'data', 'doctor'))
  code, said, _ = call('run', '--help')
  said = ' '.join(said.split())
  assert code == 0 and '--set server.learning_rate=0.5' in said and '--debug' in said


# Bad input: exit code 2, one line.


@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    (
      ['rouns=3'],
      "rouns must be a key of the top level, got an unknown one. Did you mean 'rounds'",
    ),
    (['client.learning_rte=1'], "Did you mean 'learning_rate'"),
    (['client.epochs=two'], "client.epochs must be an integer, got 'two'"),
    (['rounds=2', 'client.learning_rate=-0.1'], 'client.learning_rate must be a finite number > 0'),
    (['client.learning_rate=nan'], 'got nan'),
    (['server.learning_rate=inf'], 'server.learning_rate must be a finite number > 0, got inf'),
    (['client.batch_size=0'], 'client.batch_size must be an integer >= 1, got 0'),
    (['selection.cohort_size=13'], 'selection.cohort_size must be at most data.num_clients = 12'),
    (['version=2'], 'version must be 1, the one that this package reads, got 2'),
    (['data.name=fashion_mnst'], "Did you mean 'fashion_mnist'"),
    (['seed'], "an override must be 'section.key=value', got 'seed'"),
  ],
)
def test_a_mistake_is_one_line_and_exit_code_2(call, tiny, tmp_path, overrides, words):
  sets = [word for x in overrides for word in ('--set', x)]
  code, _, err = call('run', tiny, '--out', tmp_path / 'runs', *sets)
  assert code == 2
  assert words in one_line(err)
  assert not (tmp_path / 'runs').exists()


def test_debug_shows_where(call, tiny, tmp_path):
  code, _, err = call('run', tiny, '--set', 'rounds=0', '--debug')
  assert code == 2
  assert 'Traceback' in err and 'load_config' in err
  assert err.splitlines()[-1].startswith('fedjax-mem: error: rounds must be')


def test_files_that_are_not_there(call, tiny, tmp_path):
  code, _, err = call('run', tiny.with_name('tinny.toml'))
  assert code == 2 and "Did you mean 'tiny.toml'" in one_line(err)
  code, _, err = call('resume', tmp_path)
  assert code == 2 and 'must be a folder with config.toml and manifest.json' in one_line(err)
  code, _, err = call('report', tmp_path)
  assert code == 2 and 'a run must be a folder' in one_line(err)
  code, _, err = call('report')
  assert code == 2 and 'at least one folder' in one_line(err)
  code, _, err = call('data', 'prepare', 'no_such_data', '--data-dir', tmp_path)
  assert code == 2 and 'no_such_data' in one_line(err)


def test_data_that_are_missing_or_half_written_name_the_remedy(call, tiny, tmp_path):
  words = ('run', tiny, '--out', tmp_path / 'runs', '--set', 'data.name=fashion_mnist')
  code, _, err = call(*words, '--data-dir', tmp_path)
  assert code == 2 and 'fedjax-mem data prepare fashion_mnist' in one_line(err)
  half = tmp_path / 'fashion_mnist' / '1.0.0'
  half.mkdir(parents=True)
  (half / 'dataset_info.json').write_text('{"name": ')
  code, _, err = call(*words, '--data-dir', tmp_path)
  assert code == 2 and 'fedjax-mem data prepare fashion_mnist' in one_line(err)


@pytest.mark.parametrize(
  'words', [(), ('rum',), ('run',), ('run', 'x.toml', '--sett', 'a=b'), ('data',)]
)
def test_a_command_that_is_none_is_exit_code_2(call, words):
  code, said, err = call(*words)
  assert code == 2
  assert '--help' in said + err


def test_an_out_folder_that_cannot_be_made(call, tiny, tmp_path):
  (tmp_path / 'file').write_text('')
  code, _, err = call('run', tiny, '--out', tmp_path / 'file' / 'runs')
  assert code == 2 and 'must be writable' in one_line(err)


# Failures: exit code 1.


def test_a_run_that_fails_is_exit_code_1(call, tiny, tmp_path):
  words = ('run', tiny, '--out', tmp_path / 'runs', '--set', 'client.learning_rate=1e38')
  code, _, err = call(*words)
  assert code == 1
  assert err.startswith('fedjax-mem: failed: ') and 'is the usual remedy' in one_line(err)
  assert call(*words)[0] == 1  # in a folder of its own, beside the first
  assert len(list((tmp_path / 'runs').iterdir())) == 2


def test_a_mistake_in_the_users_own_code_says_how_to_see_where(call, tiny, tmp_path, layers):
  (layers / 'mistaken.py').write_text('def layer():\n  return 1 + None\n')
  words = ('run', tiny, '--out', tmp_path / 'runs', '--set', 'stages=[{use="mistaken:layer"}]')
  code, _, err = call(*words)
  assert code == 1
  assert one_line(err).startswith('fedjax-mem: failed: TypeError: unsupported operand')
  assert '(--debug shows where)' in err
  code, _, err = call(*words, '--debug')
  assert code == 1 and 'mistaken.py", line 2, in layer' in err


def test_damaged_checkpoints_are_exit_code_1(call, tiny, tmp_path, monkeypatch):
  def never(*args):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr('fedjax_mem.experiment.loop._Loop._finish', never)
    code, _, err = call('run', tiny, '--out', tmp_path / 'runs', '--set', 'rounds=2')
  assert code == 130 and 'stopped by Ctrl-C' in one_line(err)
  folder = only(tmp_path / 'runs')
  for path in (folder / 'checkpoints').rglob('*'):
    if path.is_file():
      path.write_bytes(b'')
  code, _, err = call('resume', folder)
  assert code == 1 and 'no sound checkpoint' in one_line(err)


@pytest.mark.filterwarnings('ignore:Error writing persistent compilation cache')
def test_a_full_disk_is_one_line_and_exit_code_1(call, tiny, tmp_path):
  # Nothing larger than 100 kB can be written, as the model's checkpoint is.
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
  try:
    code, _, err = call(
      'run', tiny, '--out', tmp_path / 'runs', '--set', 'model.name=mlp',
      '--set', 'model.options={hidden=[2000]}',
    )  # fmt: skip
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert code == 1
  assert 'checkpoint of round 1 cannot be written' in one_line(err)


# Processes.


def test_the_help_needs_no_heavy_imports():
  code = (
    'import sys\nfrom fedjax_mem.experiment import cli\n'
    "try:\n  cli.main(['run', '--help'])\nexcept SystemExit:\n  pass\n"
    "heavy = {'jax', 'numpy', 'optax', 'flax', 'orbax', 'matplotlib', 'sklearn',"
    " 'tensorflow_datasets', 'scipy', 'rich.progress'}\n"
    'print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True,
    cwd=Path(__file__).parents[2],
  )  # fmt: skip
  assert done.stderr.strip() == '[]'


class Watch:
  """Waits for something in the folder of a run that another process writes."""

  def __init__(self, process, out):
    self.process, self.out = process, out

  def until(self, found):
    for _ in range(120_000):
      if self.process.poll() is not None:
        pytest.fail(f'the run ended too early: {self.process.communicate()}')
      folders = [x for x in self.out.glob('*') if not x.name.startswith('.')]
      if folders and found(folders[0]):
        return folders[0]
      time.sleep(0.001)
    pytest.fail('it never came to that')

  def kill(self):
    self.process.send_signal(signal.SIGKILL)
    self.process.communicate()


def compiled(folder):
  return 'compile_seconds' in (folder / 'manifest.json').read_text()


def lines(number):
  def found(folder):
    file = folder / 'metrics.jsonl'
    return file.exists() and file.read_bytes().count(b'\n') >= number

  return found


def half_written(folder):
  return [x for x in (folder / 'checkpoints').glob('*tmp*') if x.is_dir()]


KILLED = """
version = 1
name = 'killed'
rounds = 12

[data]
name = 'digits'
num_clients = 12
partition = 'dirichlet'
alpha = 1

[model]
name = 'mlp'
options = {hidden = [30]}

[client]
batch_size = 20
epochs = 40
momentum = 0.5

[server]
optimizer = 'fedadam'
learning_rate = 0.05

[selection]
name = 'round_robin'
cohort_size = 5

[[stages]]
use = 'user_layers:counting'
options = {size = 30000}

[evaluation]
every = 4

[execution]
max_segment_rounds = 2
checkpoint_every_seconds = 0
keep_checkpoints = 2
devices = 2
"""


@pytest.mark.slow
def test_a_process_that_is_killed_is_resumed_bit_for_bit(start, layers, tmp_path, state_of):
  file = tmp_path / 'killed.toml'
  file.write_text(KILLED)
  whole = start('run', file, '--out', tmp_path / 'whole')
  out = tmp_path / 'killed'

  # During the first segment.
  process = start('run', file, '--out', out)
  watch = Watch(process, out)
  folder = watch.until(compiled)
  watch.kill()
  assert not lines(12)(folder)

  # Between two checkpoints, that is after the record of a round.
  process = start('resume', folder)
  watch = Watch(process, out)
  watch.until(lines(5))
  watch.kill()
  before = len(read_metrics(folder / 'metrics.jsonl'))
  assert 4 <= before < 12

  # While a checkpoint is written: stopped first, to be sure that it is.
  process = start('resume', folder)
  watch = Watch(process, out)
  while True:
    watch.until(half_written)
    process.send_signal(signal.SIGSTOP)
    if half_written(folder):
      break
    process.send_signal(signal.SIGCONT)
  watch.kill()
  assert half_written(folder)

  process = start('resume', folder)
  said, err = process.communicate()
  assert process.returncode == 0, err
  assert err == ''
  assert not half_written(folder)
  said, err = whole.communicate()
  assert whole.returncode == 0, err
  reference = only(tmp_path / 'whole')

  a, b = state_of(folder), state_of(reference)
  assert a.keys() == b.keys() and a['round'] == 12
  for name, x in b.items():
    x, y = np.asarray(x), np.asarray(a[name])
    assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), name
  strip = lambda r: json.dumps({k: x for k, x in r.items() if k != 'seconds'})
  records = [[strip(r) for r in read_metrics(f / 'metrics.jsonl')] for f in (folder, reference)]
  assert records[0] == records[1] and len(records[0]) == 12
  said = json.loads((folder / 'manifest.json').read_text())
  assert len(said['resumed']) == 3 and said['resumed'][0] == 0 and said['warnings'] == []


@pytest.mark.slow
def test_ctrl_c_once_keeps_a_checkpoint_and_another_machine_goes_on(start, tiny, tmp_path):
  out = tmp_path / 'runs'
  process = start(
    'run', tiny, '--out', out, '--set', 'rounds=100000', '--set', 'evaluation.every=50',
    '--set', 'execution.devices=2', '--set', 'execution.segment_seconds=0.5',
  )  # fmt: skip
  folder = Watch(process, out).until(lines(60))
  process.send_signal(signal.SIGINT)
  said, err = process.communicate(timeout=120)
  assert process.returncode == 130
  assert 'Ctrl-C again ends at once' in ' '.join(said.split())
  line = one_line(err)
  assert f'go on with: fedjax-mem resume {folder}' in line
  done = json.loads((folder / 'manifest.json').read_text())['rounds_done']
  assert f'stopped after round {done}' in line and done >= 60
  assert len(read_metrics(folder / 'metrics.jsonl')) == done

  # On a machine where the user allows one device only.
  process = start('resume', folder, XLA_FLAGS='--xla_force_host_platform_device_count=1')
  Watch(process, out).until(lines(done + 10))
  process.send_signal(signal.SIGINT)
  said, _ = process.communicate(timeout=120)
  assert process.returncode == 130
  words = 'resumed on 1 device(s), not 2: sums may differ in their last bits'
  assert words in ' '.join(said.split())
  assert words in ' '.join(json.loads((folder / 'manifest.json').read_text())['warnings'])


@pytest.mark.slow
def test_ctrl_c_twice_ends_at_once(start, tiny, tmp_path):
  out = tmp_path / 'runs'
  # A round of about an hour: only the second Ctrl-C can end it before the test is given up.
  process = start('run', tiny, '--out', out, '--set', 'client.epochs=20000000')
  folder = Watch(process, out).until(compiled)
  process.send_signal(signal.SIGINT)
  time.sleep(1)  # two signals at the same moment are one
  assert process.poll() is None
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 130
  assert f'ended at once; go on with: fedjax-mem resume {folder}' in err
  assert 'Traceback' not in err
  # Its lock is free, and what it had is whole.
  process = start('resume', folder)
  Watch(process, out).until(lambda f: 'resumed": [\n    0' in (f / 'manifest.json').read_text())


def test_the_module_can_be_run_and_gives_its_exit_code(start, tmp_path):
  process = start('run', tmp_path / 'nothing.toml')
  _, err = process.communicate()
  assert process.returncode == cli.BAD_INPUT and 'there is no config file' in one_line(err)
  assert os.listdir(tmp_path) == []
