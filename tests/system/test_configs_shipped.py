"""The experiments in `configs/`: each is read, and says how to run it and what to expect."""

import pathlib

import pytest

from fedjax_mem.config.load import load_config

FOLDER = pathlib.Path(__file__).parents[2] / 'configs'
PATHS = sorted(FOLDER.glob('*.toml'))


def test_there_are_some():
  assert 'quickstart.toml' in [path.name for path in PATHS]


@pytest.mark.parametrize('path', PATHS, ids=lambda path: path.stem)
def test_a_shipped_experiment(path):
  config = load_config(path)
  assert config.name == path.stem
  header = path.read_text().split('\n\n')[0]
  assert f'fedjax-mem run configs/{path.name}' in header
  assert '# expected: ' in header
