"""Sweeps as users start them: the example of the page, and the bits of runs alone."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
from reference.experiments import only

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, undrawn):
  page = (ROOT / 'docs' / 'sweeps.md').read_text()
  (code,) = re.findall(r'```python\n(.*?)```', page, re.S)
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  said = io.StringIO()
  with contextlib.redirect_stdout(said):
    exec(compile(code, 'docs/sweeps.md', 'exec'), {})
  assert said.getvalue().splitlines()[-1].startswith('client.learning_rate=0.')
  assert (only(tmp_path / 'runs') / 'table.md').exists()


def timeless(folder):
  rows = [json.loads(x) for x in (folder / 'metrics.jsonl').read_text().splitlines()]
  return [{k: x for k, x in row.items() if k != 'seconds'} for row in rows]


def test_compiled_as_users_do_a_lane_has_the_bits_of_the_run_alone(start, tiny, tmp_path):
  words = ['--set', 'rounds=3', '--quiet', '--set', 'data.partition_seed=0']
  grid = ['--grid', 'client.learning_rate=0.1,0.3', '--seeds', '0', '1', '--at-once', '1']
  full = {'JAX_DISABLE_MOST_OPTIMIZATIONS': '0'}
  swept = start('sweep', tiny, *words, *grid, '--out', tmp_path / 'a', **full)
  out, err = swept.communicate(timeout=600)
  assert swept.returncode == 0, err
  assert '4 runs: 4 in one program' in out and 'left' in out
  (folder,) = (tmp_path / 'a').iterdir()
  last = sorted((folder / 'lanes').iterdir())[-1]
  alone = start('run', last / 'config.toml', '--quiet', '--out', tmp_path / 'b', **full)
  _, err = alone.communicate(timeout=600)
  assert alone.returncode == 0, err
  assert timeless(only(tmp_path / 'b')) == timeless(last)


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['--grid', 'client.learning_rat=1'], 'client.learning_rat must be a key'),
    (['--grid', 'client.learning_rate='], 'at least one value'),
    (['--grid', 'rounds=1,2', '--seeds', '1', '1'], 'seeds must be different, got 1 twice'),
  ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, message, tiny, capsys):
  from fedjax_mem.cli import main

  assert main.main(['sweep', str(tiny), *words]) == 2
  said = capsys.readouterr().err
  assert message in said and said.count('\n') == 1
