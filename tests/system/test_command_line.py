"""The command line as people use it: processes that run, are interrupted, killed and resumed."""

import json
import os
import signal
import time

import numpy as np
import pytest
from reference.experiments import one_line, only

from fedjax_mem.cli import main as cli
from fedjax_mem.report.tracker import read_metrics


def test_a_run_from_the_command_line_leaves_its_folder_and_is_reported(start, tiny, tmp_path):
  process = start('run', tiny, '--out', tmp_path / 'runs')
  said, err = process.communicate()
  assert process.returncode == 0 and err == '', err
  folder = only(tmp_path / 'runs')
  records = read_metrics(folder / 'metrics.jsonl')
  assert [r['round'] for r in records] == [1, 2, 3, 4, 5, 6]
  assert records[-1]['test_accuracy'] > records[0]['test_accuracy'] > 0.1
  assert f'{records[-1]["test_accuracy"]:.2%}'[:4] in said
  for name in ('config.toml', 'manifest.json', 'report.html', 'learning_curve.png'):
    assert (folder / name).stat().st_size > 0, name
  process = start('report', folder, '--out', tmp_path / 'page.html')
  _, err = process.communicate()
  assert process.returncode == 0, err
  assert folder.name in (tmp_path / 'page.html').read_text()


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_bit_for_bit(start, tiny, tmp_path, state_of):
  """Once, after a record was written and before its checkpoint, or a little later."""
  every = (
    '--set',
    'execution.max_segment_rounds=1',
    '--set',
    'execution.checkpoint_every_seconds=0',
  )
  whole = start('run', tiny, '--out', tmp_path / 'whole', *every)
  killed = start('run', tiny, '--out', tmp_path / 'killed', *every)
  watch = Watch(killed, tmp_path / 'killed')
  folder = watch.until(lines(3))
  watch.kill()
  done = len(read_metrics(folder / 'metrics.jsonl'))
  _, err = whole.communicate()
  assert whole.returncode == 0, err
  if done < 6:  # else it had ended before it was killed
    process = start('resume', folder)
    _, err = process.communicate()
    assert process.returncode == 0, err
  same_run(folder, only(tmp_path / 'whole'), state_of, 6)


def same_run(folder, reference, state_of, rounds):
  """Fails unless two runs have the same state and the same records, bit for bit."""
  a, b = state_of(folder), state_of(reference)
  assert a.keys() == b.keys() and a['round'] == rounds
  for name, x in b.items():
    x, y = np.asarray(x), np.asarray(a[name])
    assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), name
  strip = lambda r: json.dumps({k: x for k, x in r.items() if k != 'seconds'})
  records = [[strip(r) for r in read_metrics(f / 'metrics.jsonl')] for f in (folder, reference)]
  assert records[0] == records[1] and len(records[0]) == rounds


class Watch:
  """Waits for something in the folder of a run that another process writes."""

  def __init__(self, process, out):
    self.process, self.out = process, out

  def until(self, found):
    for _ in range(120_000):
      ended = self.process.poll() is not None
      folders = [x for x in self.out.glob('*') if not x.name.startswith('.')]
      if folders and found(folders[0]):
        return folders[0]
      if ended:
        pytest.fail(f'the run ended too early: {self.process.communicate()}')
      time.sleep(0.001)
    pytest.fail('it never came to that')

  def stop(self, found):
    """Stops the process where it is so, to be sure that it still is when it is killed."""
    while True:
      folder = self.until(found)
      self.process.send_signal(signal.SIGSTOP)
      if found(folder):
        return
      self.process.send_signal(signal.SIGCONT)

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
  watch.stop(lambda folder: lines(5)(folder) and not half_written(folder))
  watch.kill()
  before = len(read_metrics(folder / 'metrics.jsonl'))
  assert 4 <= before < 12

  # While a checkpoint is written; none was before, so it is this process that writes it.
  process = start('resume', folder)
  watch = Watch(process, out)
  watch.stop(half_written)
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

  same_run(folder, reference, state_of, 12)
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
def test_a_scheduler_ends_a_run_whose_output_has_gone_away(start, tiny, tmp_path):
  """As `fedjax-mem run … | head -1` under Slurm, in a terminal that has ASCII alone."""
  out = tmp_path / 'runs'
  process = start(
    'run', tiny, '--out', out, '--set', 'rounds=100000', '--set', 'evaluation.every=50',
    '--set', 'execution.segment_seconds=0.5', PYTHONIOENCODING='ascii',
  )  # fmt: skip
  assert process.stdout.readline().startswith('folder: ')
  process.stdout.close()
  folder = Watch(process, out).until(lines(200))
  process.send_signal(signal.SIGTERM)
  err = process.stderr.read()
  assert process.wait(timeout=120) == 143
  done = json.loads((folder / 'manifest.json').read_text())['rounds_done']
  assert f'interrupted: SIGTERM: stopped after round {done}, which is in a checkpoint' in one_line(
    err
  )
  assert len(read_metrics(folder / 'metrics.jsonl')) == done >= 200
  assert (folder / 'checkpoints' / str(done)).is_dir()


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


@pytest.mark.slow
def test_the_module_can_be_run_and_gives_its_exit_code(start, tmp_path):
  process = start('run', tmp_path / 'nothing.toml')
  _, err = process.communicate()
  assert process.returncode == cli.BAD_INPUT and 'there is no config file' in one_line(err)
  assert os.listdir(tmp_path) == []
