"""What a sweep runs, and what it refuses before anything runs."""

import pytest

from fedjax_mem.studies.sweeps import grid


def test_values_are_toml_or_bare_words():
  texts = ['client.learning_rate=0.01, 1', 'weighting.name=equal,examples', 'a.b=[1, 2], [3]']
  assert grid.parse(texts) == {
    'client.learning_rate': [0.01, 1],
    'weighting.name': ['equal', 'examples'],
    'a.b': [[1, 2], [3]],
  }


def test_every_combination_runs_for_each_seed(make):
  config = make('seed=9', 'noise_seed=9')
  values = {'client.learning_rate': [0.1, 1], 'client.momentum': [0.0, 0.9]}
  found = grid.points(config, values, [3, 4])
  assert [x.seed for x in found] == [3, 4] * 4
  assert [tuple(x.values.values()) for x in found[::2]] == [(0.1, 0), (0.1, 0.9), (1, 0), (1, 0.9)]
  last = found[-1].config
  assert (last.client.learning_rate, last.client.momentum) == (1.0, 0.9)
  assert (last.seed, last.noise_seed) == (4, 4) and config.client.learning_rate == 0.1
  assert found[-1].label == 'client.learning_rate=1, client.momentum=0.9'


def test_a_point_leaves_the_tables_of_the_experiment_as_they_are(make):
  config = make('model.name=mlp', 'model.options={hidden=[8]}')
  found = grid.points(config, {'model.options.hidden': [[4], [16]]}, [0])
  assert [x.config.model.options['hidden'] for x in found] == [[4], [16]]
  assert config.model.options == {'hidden': [8]}


def test_the_folder_is_named_by_what_runs_whatever_the_seed_of_the_file(make):
  values = {'client.learning_rate': [0.1]}
  one = grid.name(make(), values, [0])
  assert one == grid.name(make('seed=7'), values, [0]) and one.startswith('tiny-sweep-')
  others = [(make('rounds=7'), values, [0]), (make(), values, [1]), (make(), {'rounds': [1]}, [0])]
  assert len({one, *(grid.name(*x) for x in others)}) == 4


BAD = {
  'grid must be of at least one key': ({}, [0]),
  'seeds must be at least one': ({'rounds': [1]}, []),
  'seeds must be different, got 1 twice': ({'rounds': [1]}, [1, 0, 1]),
  'seeds must be an integer': ({'rounds': [1]}, [-1]),
  "at least one value for 'rounds'": ({'rounds': []}, [0]),
  "list of values for 'rounds', got 3": ({'rounds': 3}, [0]),
  "different values for 'rounds', got 2 twice": ({'rounds': [2, 1, 2]}, [0]),
  'client.learning_rat must be a key.*learning_rate': ({'client.learning_rat': [1]}, [0]),
  'client.learning_rate must be a finite number > 0, got -1': (
    {'client.learning_rate': [0.1, -1]},
    [0],
  ),
  "leave out 'seed': use --seeds": ({'seed': [1, 2]}, [0]),
  "leave out 'noise_seed'": ({'noise_seed': [1, 2]}, [0]),
  "keys that change results, got 'execution.chunk'": ({'execution.chunk': [1, 2]}, [0]),
  'different runs, got client.learning_rate=1 and': ({'client.learning_rate': [1, 1.0]}, [0]),
}


@pytest.mark.parametrize('message', BAD)
def test_bad_input_is_refused_in_one_line_that_names_it(make, message):
  with pytest.raises(ValueError, match=message) as error:
    grid.points(make(), *BAD[message])
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('texts', [['rounds'], ['=1'], ['rounds=1', 'rounds=2']])
def test_texts_that_are_no_grid_are_refused(texts):
  with pytest.raises(ValueError, match='grid must'):
    grid.parse(texts)


def test_trackers_are_refused_in_a_sweep(make):
  with pytest.raises(ValueError, match=r"tracking.use must be empty in a sweep.*got \['csv'\]"):
    grid.points(make('tracking.use=["csv"]'), {'rounds': [1]}, [0])
