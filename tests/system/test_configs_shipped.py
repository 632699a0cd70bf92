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


PUBLISHED = sorted((FOLDER / 'published').glob('*.toml'))
# Configuration -> what stands for its data, of the same shape; and what makes it small.
MADE = {
  'pfl_cifar10': ('cifar10', 'data.num_clients=60'),
  'reddi_cifar100': ('cifar100', 'model.name=cnn'),  # ResNet-18 takes a minute to compile
  'reddi_emnist': ('emnist',),
  'reddi_shakespeare': ('shakespeare',),
}


def test_every_published_experiment_has_data_that_stands_for_its_own():
  assert [path.stem for path in PUBLISHED] == sorted(MADE)


@pytest.mark.parametrize('path', PUBLISHED, ids=lambda path: path.stem)
def test_what_is_for_who_has_the_data_says_that_it_was_not_run(path):
  config, header = load_config(path), path.read_text().split('\n\n')[0]
  assert config.name == path.stem
  assert header.startswith('# not run here: ')
  assert f'fedjax-mem run configs/published/{path.name}' in header
  assert f'fedjax-mem data prepare {config.data.name}' in header


@pytest.mark.slow
@pytest.mark.parametrize('path', PUBLISHED, ids=lambda path: path.stem)
def test_two_rounds_on_made_data_of_the_same_shape(path, tmp_path):
  from fedjax_mem.runner import loop

  data, *small = MADE[path.stem]
  given = [f'data.name=reference.made:{data}', 'rounds=2', 'evaluation.every=2', *small]
  records = loop.run(load_config(path, given), tmp_path, quiet=True).metrics
  assert [x['clients'] for x in records] == [load_config(path).selection.cohort_size] * 2
  assert all(0 < x['train_loss'] < 20 for x in records) and 0 <= records[1]['test_accuracy'] <= 1
