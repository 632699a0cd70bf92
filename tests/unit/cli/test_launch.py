"""The command `launch`: what its processes are told, and what it refuses."""

import subprocess
import sys

import pytest
import tyro
from reference.experiments import one_line

from fedjax_mem.cli import main as cli
from fedjax_mem.cli.launch import words
from fedjax_mem.runner import launching


def read(words):
  options = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
  return tyro.cli(cli.Commands, args=words, config=options)


@pytest.mark.parametrize(
  'asked',
  [
    ['run', 'quickstart'],
    ['run', 'a.toml', '--quiet', '--set', 'rounds=2', '--set', 'a.b=c d', '--out=-x'],
    ['run', 'a.toml', '--no-cache', '--debug', '--data-dir=/d d'],
    ['resume', 'runs/a'],
    ['resume', 'runs/a', '--data-dir=d', '--quiet', '--no-cache', '--debug'],
  ],
)
def test_processes_are_told_what_was_said(asked):
  command = read(asked)
  told = words(command)
  assert read(told) == command and set(asked) <= set(told)


def test_what_is_launched(monkeypatch, tmp_path):
  asked = []
  monkeypatch.setattr(launching, 'launch', lambda *words, **options: asked.append((words, options)))
  line = ['launch', '--processes', '2', '--devices', '3', 'run', 'x', '--out', str(tmp_path)]
  assert cli.main(line) == 0
  (tmp_path / 'run').mkdir()
  (tmp_path / 'link').symlink_to(tmp_path / 'run')
  assert cli.main(['launch', '--processes', '1', 'resume', str(tmp_path / 'link'), '--debug']) == 0
  assert asked == [
    (
      (['run', 'x', f'--out={tmp_path}'], 2),
      {'out': tmp_path, 'devices': 3, 'debug': False},
    ),
    (
      (['resume', str(tmp_path / 'link'), '--debug'], 1),
      {'out': tmp_path, 'devices': None, 'debug': True},
    ),
  ]


def test_what_is_refused(capsys, tmp_path):
  (tmp_path / 'sweep.json').touch()
  for line, message in (
    ('--processes 0 run x', 'processes must be an integer >= 1, got 0.'),
    ('--processes 1 --devices 0 run x', 'devices must be an integer >= 1, got 0.'),
    (f'--processes 1 resume {tmp_path}', 'RUN must be the folder of a run, got a sweep'),
    (f'--processes 1 resume {tmp_path}/no', 'RUN must be the folder of a run, got'),
  ):
    assert cli.main(['launch', *line.split()]) == 2
    assert message in one_line(capsys.readouterr().err)
  for line in ('--processes 1 report x', '--processes two run x', '--processes 1', 'run x'):
    with pytest.raises(SystemExit) as end:
      cli.main(['launch', *line.split()])
    assert end.value.code == 2
    capsys.readouterr()


def test_bad_input_is_the_line_of_a_run_alone(capfd, tmp_path):
  line = ['run', 'quickstart', '--set', 'rouns=3', '--out', str(tmp_path / 'out')]
  assert cli.main(line) == 2
  alone = capfd.readouterr()
  assert cli.main(['launch', '--processes', '2', *line]) == 2
  assert capfd.readouterr() == alone and 'rouns' in alone.err
  assert not (tmp_path / 'out').exists()


def test_the_current_folder_is_no_place_of_modules(capfd, tmp_path, monkeypatch):
  (tmp_path / 'tomllib.py').write_text('raise SystemExit(9)')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [x for x in sys.path if x])
  assert cli.main(['launch', '--processes', '1', 'run', 'quickstart', '--set', 'rouns=3']) == 2
  assert 'rouns' in capfd.readouterr().err


def test_it_imports_no_jax(tmp_path):
  code = (
    'import sys\nfrom fedjax_mem.cli.main import main\nfrom fedjax_mem.runner import launching\n'
    'launching.PROGRAM = (sys.executable, "-c", "")\n'
    'code = main(["launch", "--processes", "2", "run", "x", "--out", sys.argv[1]])\n'
    'print(code, {"jax", "numpy", "flax"} & set(sys.modules))\n'
  )
  done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True)
  assert done.stdout == '0 set()\n'
