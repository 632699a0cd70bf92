"""Runs in several processes: the bits of one process, its share of memory, and what ends them."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from fedjax_mem.runner.launching import ProcessFailed, Stopped, launch

pytestmark = pytest.mark.slow
REPOSITORY = pathlib.Path(__file__).parents[2]
HERE = REPOSITORY / 'tests' / 'reference' / 'processes'
STACKS = REPOSITORY / 'tests' / 'oracle' / 'stacks'
# Client states, a robust rule, noise, streaming.
NAMES = ('scaffold', 'robust_median_sign_flip', 'private_central_uniform', 'streamed')


def run_all(out, processes, devices):
  files = [str(STACKS / f'{name}.toml') for name in NAMES]
  program = [sys.executable, str(HERE / 'stacks.py')]
  launch([str(out), '4', *files], processes, out=out, devices=devices, program=program)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Folders of the stacks on 1 x 4, 2 x 2 and 4 x 1 processes x devices."""
  made = {}
  for processes in (1, 2, 4):
    made[processes] = tmp_path_factory.mktemp(f'of-{processes}')
    run_all(made[processes], processes, 4 // processes)
  return made


def records(folder):
  lines = [json.loads(x) for x in (folder / 'metrics.jsonl').read_text().splitlines()]
  return [{k: v for k, v in line.items() if k != 'seconds'} for line in lines]


@pytest.mark.parametrize('processes', [2, 4])
def test_one_two_and_four_processes_give_the_same_bits(runs, processes):
  folders = sorted(x.name for x in runs[1].iterdir() if x.is_dir())
  assert len(folders) == len(NAMES)
  for name in folders:
    one, other = runs[1] / name, runs[processes] / name
    assert records(one) == records(other), name
    assert (one / 'params.safetensors').read_bytes() == (other / 'params.safetensors').read_bytes()
    finished = json.loads((other / 'manifest.json').read_text())
    assert finished['status'] == 'finished' and (other / 'report.html').exists()


def test_each_process_holds_its_share_of_examples_and_states(runs):
  whole = json.loads((runs[1] / 'held-0.json').read_text())
  assert len(whole) == len(NAMES)
  for process in (0, 1):
    part = json.loads((runs[2] / f'held-{process}.json').read_text())
    for name, held in whole.items():
      for what, size in held.items():
        assert part[name][what] <= 0.6 * size, (name, what)


# Faults.

OPTIONS = {
  'execution.devices': 4,
  'execution.data': '"divided"',
  'rounds': 4,
  'evaluation.every': 1,
  'execution.max_segment_rounds': 1,
  'execution.checkpoint_every_seconds': 0,
}
WORDS = ['run', 'quickstart', *(x for k, v in OPTIONS.items() for x in ('--set', f'{k}={v}'))]
ENDS = {'SIGKILL': 'killed by SIGKILL', 'SIGSTOP': 'stopped by SIGSTOP'}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The folder of the run that nothing has ended."""
  out = tmp_path_factory.mktemp('whole')
  launch([*WORDS, f'--out={out}'], 2, out=out, devices=2)
  return next(out.glob('quickstart-*'))


def left(folder):
  """Returns the processes that still have the folder's name among their words."""
  found = subprocess.run(['pgrep', '-f', str(folder)], capture_output=True, text=True, check=False)
  return found.stdout.split()


@pytest.mark.parametrize('phase', ['round', 'evaluation', 'checkpoint'])
@pytest.mark.parametrize('process', [0, 1])
@pytest.mark.parametrize('how', ENDS)
def test_a_process_that_dies_ends_all_and_the_run_goes_on(
  whole, tmp_path, monkeypatch, capfd, phase, process, how
):
  monkeypatch.setenv('DIES', f'{process},{phase},2,{how}')
  program = [sys.executable, str(HERE / 'dies.py')]
  with pytest.raises(ProcessFailed) as error:
    launch([*WORDS, f'--out={tmp_path}'], 2, out=tmp_path, devices=2, program=program)
  (folder,) = tmp_path.glob('quickstart-*')
  said = str(error.value)
  assert said.startswith(f'process {process}: {ENDS[how]}') and f'in round 2 ({phase})' in said
  assert f'launch --processes 2 --devices 2 resume {folder}' in said
  assert (folder / 'logs' / f'process-{process}.txt').exists()
  assert left(tmp_path) == []
  again = [sys.executable, '-m', 'fedjax_mem', 'resume', str(folder), '--quiet']
  subprocess.run(again, check=True, timeout=300, env={**os.environ, 'JAX_PLATFORMS': 'cpu'})
  assert records(folder) == records(whole)
  assert (folder / 'params.safetensors').read_bytes() == (whole / 'params.safetensors').read_bytes()


def test_ctrl_c_stops_all_after_a_checkpoint(tmp_path):
  words = [sys.executable, '-m', 'fedjax_mem', 'launch', '--processes', '2', '--devices', '2']
  words += [*WORDS, '--set', 'rounds=400', f'--out={tmp_path}']
  with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
    for line in run.stdout:
      if line.startswith('round 1/'):
        break
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=120)[1]
  assert run.returncode == 130
  assert 'go on with: fedjax-mem launch --processes 2 --devices 2 resume' in said.splitlines()[-1]
  (folder,) = tmp_path.glob('quickstart-*')
  assert json.loads((folder / 'manifest.json').read_text())['status'] == 'interrupted'
  assert left(tmp_path) == []


def test_a_signal_to_another_process_alone_stops_all_after_a_checkpoint(tmp_path, monkeypatch):
  monkeypatch.setenv('DIES', '1,round,2,SIGTERM')
  program = [sys.executable, str(HERE / 'dies.py')]
  with pytest.raises(Stopped, match=r'SIGTERM to process 1: stopped after round [23],') as stopped:
    launch([*WORDS, f'--out={tmp_path}'], 2, out=tmp_path, devices=2, program=program)
  (folder,) = tmp_path.glob('quickstart-*')
  assert json.loads((folder / 'manifest.json').read_text())['status'] == 'interrupted'
  assert stopped.value.code == 143 and left(tmp_path) == []


def test_a_ledger_counts_what_a_killed_process_may_have_released(tmp_path, monkeypatch):
  monkeypatch.setenv('DIES', '0,round,3,SIGKILL')
  program = [sys.executable, str(HERE / 'dies.py')]
  words = [*WORDS, '--set', 'execution.segment_seconds=1']
  words[1] = str(STACKS / 'private_central_uniform.toml')
  with pytest.raises(ProcessFailed):
    launch([*words, f'--out={tmp_path}'], 2, out=tmp_path, devices=2, program=program)
  (folder,) = (x.parent for x in tmp_path.glob('*/manifest.json'))
  ledger = json.loads((folder / 'ledger.json').read_text())
  published = [x['round'] for x in records(folder)]
  assert ledger['charged'] >= max(published) + 1 and max(published) >= 2
  # The secret root is in the folder of process 0 alone: others get it again when the run goes on.
  launch(['resume', str(folder)], 2, out=tmp_path, devices=2)
  assert json.loads((folder / 'manifest.json').read_text())['status'] == 'finished'
  ledger = json.loads((folder / 'ledger.json').read_text())
  assert ledger['done'] == ledger['charged'] == len(records(folder))


@pytest.mark.parametrize('processes', [1, 2])
def test_a_checkpoint_that_lacks_a_shard_is_refused_and_the_one_before_is_taken(
  tmp_path, monkeypatch, processes
):
  monkeypatch.setenv('DIES', '0,round,4,SIGKILL')
  program = [sys.executable, str(HERE / 'dies.py')]
  words = [*WORDS, f'--out={tmp_path}']
  words[1] = str(STACKS / 'scaffold.toml')
  with pytest.raises(ProcessFailed):
    launch(words, 2, out=tmp_path, devices=2, program=program)
  (folder,) = (x.parent for x in tmp_path.glob('*/manifest.json'))
  assert sorted(int(x.name) for x in (folder / 'checkpoints').iterdir()) == [1, 2, 3]
  shards = [x for x in (folder / 'checkpoints' / '3').rglob('*process_1/d/*') if x.is_file()]
  assert shards
  for x in shards:
    x.unlink()
  launch(['resume', str(folder)], processes, out=tmp_path, devices=4 // processes)
  said = json.loads((folder / 'manifest.json').read_text())
  assert said['status'] == 'finished' and said['resumed'] == [2]
  assert any('checkpoint 3 is refused' in x for x in said['warnings'])
