"""A damaged manifest is one line that names what is wrong, and what to do."""

import json

import pytest

from fedjax_mem.runner.folder import create
from fedjax_mem.runner.loop import resume
from fedjax_mem.runner.manifest import read

PREPARED = {
  'backend': 'cpu',
  'resumed': [],
  'execution': {'mode': 'loop', 'chunk': None, 'devices': 1, 'max_rounds': 3},
}


@pytest.fixture
def folder(make, tmp_path):
  made = create(make(), tmp_path / 'runs')
  made.note(**PREPARED)
  return made.path


def test_a_sound_one_is_read(folder):
  assert read(folder)['execution']['devices'] == 1


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('{"status": "run', 'must be readable JSON, got an error: '),
    ('', 'must be readable JSON, got an error: '),
    ('\xff', 'must be readable JSON, got an error: '),
    ('[]', 'must hold a table, got []'),
    ('{}', 'must have a string as config_hash, got none'),
  ],
)
def test_a_file_that_is_no_manifest(folder, text, words):
  (folder / 'manifest.json').write_bytes(text.encode('latin-1'))
  refused(folder, words)


def refused(folder, words):
  """Fails unless resuming says so in one line with a remedy, which blames no other file."""
  with pytest.raises(ValueError) as error:
    resume(folder)
  line = str(error.value)
  assert line.startswith(f'{folder / "manifest.json"} {words}') and '\n' not in line
  assert line.endswith(
    f'put a sound copy of manifest.json back, or begin anew with `fedjax-mem run {folder}/'
    'config.toml`.'
  )


@pytest.mark.parametrize(
  ('key', 'value', 'words'),
  [
    ('status', 3, 'must have a string as status, got 3'),
    ('warnings', 'one', "must have an array of strings as warnings, got 'one'"),
    ('backend', None, 'must have a string as backend, got none'),
    ('resumed', [0, 'x'], "must have an array of integers as resumed, got [0, 'x']"),
    ('execution', 'fast', "must have a table as execution, got 'fast'"),
    ('execution.devices', None, 'must have an integer in [1, 1024] as execution.devices, got none'),
    (
      'execution.devices',
      'two',
      "must have an integer in [1, 1024] as execution.devices, got 'two'",
    ),
    ('execution.devices', True, 'must have an integer in [1, 1024] as execution.devices, got True'),
    ('execution.devices', 5000, 'must have an integer in [1, 1024] as execution.devices, got 5000'),
    ('execution.mode', 'auto', "must have 'loop' or 'chunk' as execution.mode, got 'auto'"),
    ('execution.chunk', 0, 'must have an integer >= 1 or null as execution.chunk, got 0'),
    ('execution.max_rounds', 1.5, 'must have an integer >= 1 as execution.max_rounds, got 1.5'),
  ],
)
def test_a_fact_that_is_missing_or_of_another_type(folder, key, value, words):
  said = json.loads((folder / 'manifest.json').read_text())
  place, *parents = said, *key.split('.')
  for part in parents[:-1]:
    place = place[part]
  if value is None:
    del place[parents[-1]]
  else:
    place[parents[-1]] = value
  (folder / 'manifest.json').write_text(json.dumps(said))
  refused(folder, words)
