"""Samplers by name in a configuration: where they stand, what they are given, what they leave."""

import inspect
import json

import jax
import numpy as np
import pytest

from fedjax_mem.config.build import build
from fedjax_mem.config.load import config_from_dict, config_hash, load_config, to_toml
from fedjax_mem.report import figures, plots
from fedjax_mem.report.tracker import MetricsWriter
from fedjax_mem.runner.loop import resume, run
from fedjax_mem.stages.select import draw_durations

pytestmark = pytest.mark.slow

SPLIT = 'data.validation=0.1'
NAMES = {
  'importance': (),
  'power_of_choice': (),
  'oort': (),
  'contribution': (SPLIT,),
}


class Killed(BaseException):
  """Stands for a death that nothing in the package may catch."""


def order(config):
  return [x.name for x in build(config).layers]


def chooser(config):
  return next(x for x in build(config).layers if x.select is not None)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.usefixtures('undrawn')
def test_every_sampler_runs_by_its_name(name, make, tmp_path):
  result = run(make(f'selection.name={name}', *NAMES[name], 'rounds=3'), tmp_path, quiet=True)
  assert len(result.metrics) == 3
  assert result.metrics[-1]['test_accuracy'] > 0.15
  told = json.loads((result.folder / 'manifest.json').read_text())['warnings']
  assert any('weighting.options.divisor = 1438' in x for x in told) == (name == 'importance')


def test_each_stands_where_it_sees_what_it_needs(make):
  layers = lambda *more: order(make(*more, 'stages=[{use="top_k", options={fraction=0.1}}]'))
  assert layers() == ['algorithm', 'select', 'weigh', 'top_k']
  assert layers('selection.name=importance') == ['algorithm', 'weigh', 'select', 'top_k']
  assert layers('selection.name=oort') == ['select', 'algorithm', 'weigh', 'top_k']
  assert layers('selection.name=importance', 'selection.options.by=loss') == [
    'select', 'algorithm', 'weigh', 'inverse_chance', 'top_k'
  ]  # fmt: skip
  # What hostile clients send is what counts, before a rule makes all messages alike.
  config = make(
    'selection.name=contribution',
    SPLIT,
    'stages=[{use="top_k", options={fraction=0.1}}, {use="sign_flip", options={attackers=1}},'
    ' {use="median"}]',
  )
  assert order(config)[1:5] == ['weigh', 'top_k', 'sign_flip', 'select']


@pytest.mark.usefixtures('undrawn')
def test_a_fixed_divisor_is_not_warned_of(make, tmp_path):
  config = make('selection.name=importance', 'weighting.options.divisor=1438', 'rounds=1')
  told = json.loads((run(config, tmp_path, quiet=True).folder / 'manifest.json').read_text())
  assert not any('divisor' in x for x in told['warnings'])


def test_contribution_is_refused_without_a_validation_split(make):
  with pytest.raises(ValueError, match=r'validation must be .* set data.validation to a share'):
    build(make('selection.name=contribution'))


@pytest.mark.usefixtures('undrawn')
def test_scores_are_left_in_the_folder(make, tmp_path):
  config = make('selection.name=contribution', SPLIT, 'rounds=4')
  result = run(config, tmp_path, quiet=True)
  rows = json.loads((result.folder / 'contributions.json').read_text())
  assert [x['client'] for x in rows] == list(range(12))
  assert sum(x['rounds'] for x in rows) == 4 * 4
  assert all(x['score'] == 0 for x in rows if not x['rounds'])
  assert (result.folder / 'contributions.png').exists()
  assert 'Contribution of each client' in (result.folder / 'report.html').read_text()
  assert 'select/gain' in result.metrics[0]


def test_availability_and_clock_wrap_any_sampler(make):
  config = make(
    'selection.name=oort',
    'selection.options.preferred_seconds=3',
    'selection.availability={use="markov", leave=0.5, join=0.5}',
    'selection.clock={median_seconds=4.0, spread=0.2, deadline=6.0}',
    'selection.dropout=0.1',
    'seed=7',
  )
  parts = build(config)
  layer = next(x for x in parts.layers if x.name == 'deadline')
  seconds = draw_durations(12, 4.0, 0.2, seed=7, sizes=parts.data.counts)
  rule = inspect.getclosurevars(layer.select.apply).nonlocals['stays']
  inside = inspect.getclosurevars(rule).nonlocals
  np.testing.assert_array_equal(inside['median'], seconds)
  assert inside['deadline'] == 6.0


@pytest.mark.usefixtures('undrawn')
def test_a_run_with_clients_that_are_away_and_late_resumes(make, tmp_path, monkeypatch):
  given = (
    'selection.name=importance',
    'selection.availability={use="diurnal", period=4}',
    'selection.clock={median_seconds=4.0, deadline=5.0, jitter=0.2}',
    'execution.checkpoint_every_seconds=0',
  )
  whole = run(make(*given), tmp_path / 'whole', quiet=True)
  names = ('select/unavailable', 'select/late', 'select/virtual_seconds')
  assert all(sum(x[name] for x in whole.metrics) > 0 for name in names)
  write = MetricsWriter.write

  def dying(self, record):
    write(self, record)
    if record['round'] == 4:
      raise Killed

  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(MetricsWriter, 'write', dying)
    run(make(*given), tmp_path / 'half', quiet=True)
  (folder,) = (tmp_path / 'half').iterdir()
  again = resume(folder, quiet=True)
  assert json.loads((folder / 'manifest.json').read_text())['resumed'] != []
  # As text: where no client arrived, NaN is to be equal to NaN.
  strip = lambda records: json.dumps(
    [{k: x for k, x in r.items() if k != 'seconds'} for r in records]
  )
  assert strip(again.metrics) == strip(whole.metrics)
  for one, two in zip(*(jax.tree.leaves(x.params) for x in (whole, again)), strict=True):
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    (('selection.availability={use="markow"}',), "must be one of .* Did you mean 'markov'"),
    (('selection.availability={leave=0.5}',), 'selection.availability.use must be one of'),
    (('selection.availability={use="markov", stay=1}',), "got 'stay'"),
    (('selection.clock={deadline=3.0}',), 'median_seconds must be given'),
    (('selection.clock={median_seconds=3.0, dedline=1.0}',), "Did you mean 'deadline'"),
    (('selection.name=importance', 'selection.options.sizes=[1]'), 'sizes must be left out'),
    (
      ('selection.name=builtins:list',),
      'must name a factory of a layer that draws the cohort',
    ),
    (('data.validation=1.0',), r'data.validation must be a number in \[0, 1\), got 1.0'),
  ],
)
def test_bad_settings(make, overrides, message):
  with pytest.raises(ValueError, match=message):
    build(make(*overrides))


def test_new_keys_are_written_read_and_hashed(make, tmp_path):
  plain, other = make(), make(SPLIT, 'selection.clock={median_seconds=4.0}')
  for config in (plain, other):
    path = tmp_path / 'tiny.toml'
    path.write_text(to_toml(config))
    assert load_config(path) == config
  assert 'clock' not in to_toml(plain)
  assert config_hash(plain) != config_hash(other)
  old = {'version': 1, 'rounds': 6, 'data': {'name': 'digits', 'num_clients': 12}}
  old |= {'model': {'name': 'logistic'}, 'client': {'batch_size': 20}}
  assert config_hash(config_from_dict(old | {'selection': {'cohort_size': 4}})) == config_hash(
    plain
  )


def test_the_picture_has_a_bar_for_each_client_with_a_score():
  figure = plots.contributions([0.5, -0.2, 9.0, 0.1], [3, 1, 0, 2])
  (ax,) = figure.axes
  bars = {round(b.get_x() + b.get_width() / 2): b.get_height() for b in ax.patches}
  assert bars == {0: 0.5, 1: -0.2, 3: 0.1}
  assert '3 of 4' in ax.get_xlabel()
  up, down = (next(b for b in ax.patches if (b.get_height() > 0) == on) for on in (True, False))
  assert up.get_facecolor() != down.get_facecolor()
  assert figures.png(plots.contributions([], [], dark=True)).startswith(b'\x89PNG')
