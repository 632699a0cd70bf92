"""Trackers: what they are told, what a claim keeps from them, and that none ends a run."""

import pathlib

import pytest

import fedjax_mem as fm
from fedjax_mem.config.load import config_hash
from fedjax_mem.runner import trackers
from fedjax_mem.runner.trackers import About, Tracker, Trackers

ABOUT = About('a', 'id', pathlib.Path(), {}, 3, 0)


class Noting(Tracker):
  def __init__(self, fails=''):
    self.seen, self.fails = [], fails

  def __getattribute__(self, name):
    found = super().__getattribute__(name)
    if name not in ('start', 'segment', 'evaluation', 'checkpoint', 'end'):
      return found

    def noted(*arguments):
      self.seen.append((name, *arguments))
      if name == self.fails:
        raise RuntimeError('two\nlines')

    return noted


def test_each_is_told_in_order_and_one_that_raises_is_left_out():
  good, bad, said = Noting(), Noting('segment'), []
  followed = Trackers([bad, good], said.append)
  with followed.following(ABOUT):
    followed.segment([{'round': 1, 'x': 2.0}], scored=True)
    followed.checkpoint(1)
  assert [x[0] for x in bad.seen] == ['start', 'segment']
  assert good.seen == [
    ('start', ABOUT), ('segment', [{'round': 1, 'x': 2.0}]), ('evaluation', {'round': 1, 'x': 2.0}),
    ('checkpoint', 1), ('end', 'finished'),
  ]  # fmt: skip
  assert said == [
    'the tracker Noting is left out from here on: in segment it raised RuntimeError: two lines'
  ]


@pytest.mark.parametrize(
  ('error', 'status'), [(KeyboardInterrupt, 'interrupted'), (OSError, 'failed')]
)
def test_the_end_is_told_whatever_it_is(error, status):
  tracker = Noting()
  with pytest.raises(error), Trackers([tracker], print).following(ABOUT):
    raise error
  assert tracker.seen[-1] == ('end', status)


@pytest.mark.parametrize(('uncovered', 'names'), [(False, ['round', 'a']), (True, None)])
def test_under_a_claim_only_what_it_covers_leaves(uncovered, names):
  tracker, record = Noting(), {'round': 1, 'a': 1.0, 'b': 2.0, 'covered': ['round', 'a']}
  Trackers([tracker], print, uncovered).segment([record], scored=False)
  assert tracker.seen == [('segment', [{k: record[k] for k in names or record}])]


def test_only_numbers_are_metrics():
  record = {'round': 2, 'a': 1, 'b': True, 'c': [1], 'd': 'x', 'e': 0.5}
  assert trackers.numbers(record) == {'a': 1.0, 'b': 1.0, 'e': 0.5}


@pytest.fixture
def mine(tmp_path, monkeypatch):
  (tmp_path / 'my_trackers.py').write_text(
    'from fedjax_mem.runner.trackers import Tracker\n'
    'made = []\n'
    'class Mine(Tracker):\n'
    '  def __init__(self, word="x"):\n'
    '    self.word, self.rounds = word, []\n'
    '    made.append(self)\n'
    '  def segment(self, records):\n'
    '    self.rounds += [r["round"] for r in records]\n'
    'def other() -> int:\n'
    '  raise RuntimeError("it was called")\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  import my_trackers

  return my_trackers


@pytest.mark.slow
def test_a_run_has_those_of_its_configuration_and_those_given(make, tmp_path, mine, undrawn):
  asked = ('tracking.use=["my_trackers:Mine"]', 'tracking.options={"my_trackers:Mine"={word="y"}}')
  config, given = make('rounds=2', *asked), Noting()
  assert config_hash(config) == config_hash(make('rounds=2'))
  fm.run(config, tmp_path, trackers=[given, Noting('start')], quiet=True)
  (tracker,) = mine.made
  assert tracker.word == 'y' and tracker.rounds == [1, 2]
  about = given.seen[0][1]
  assert about.rounds == 2 and about.settings['model.name'] == 'logistic' and about.done == 0
  assert given.seen[-1] == ('end', 'finished') and ('checkpoint', 2) in given.seen
  scored = [x[1] for x in given.seen if x[0] == 'evaluation']
  assert [x['round'] for x in scored] == [1, 2] and 'test_accuracy' in scored[0]


@pytest.mark.slow
def test_a_seed_of_noise_is_not_told(make, tmp_path, undrawn):
  given = Noting()
  overrides = ('rounds=1', 'noise_seed=3', 'weighting.name=equal', 'weighting.options={divisor=4}')
  stage = 'stages=[{use="central", options={l2_clip_norm=1.0, noise_multiplier=1.0}}]'
  fm.run(make(*overrides, stage, 'privacy.delta=1e-5'), tmp_path, trackers=[given], quiet=True)
  assert 'noise_seed' not in given.seen[0][1].settings
  (record,) = given.seen[1][1]
  assert 'epsilon' in record and 'train_loss' not in record


def test_bad_input(make, mine):
  for text, words in (
    ('tracking.use=["csb"]', "tracking.use must be one of .* Did you mean 'csv'"),
    ('tracking.use=["my_trackers:other"]', 'tracking.use must name a factory of a Tracker, got'),
    ('tracking.use=[3]', r'tracking.use\[0\] must be the name of a tracker, got 3'),
    ('tracking.options={cvs={}}', 'tracking.options must be of trackers in tracking.use'),
    ('tracking={use=["csv"], options={csv={a=1}}}', 'tracking'),
  ):
    with pytest.raises(ValueError, match=words):
      trackers.asked(make(text).tracking)
