"""The privacy commands: the numbers are the accountant's, and the plot shows the same ones."""

import re

import numpy as np
import pytest
from PIL import Image

from fedjax_mem import account, mechanisms
from fedjax_mem.cli import main as cli
from fedjax_mem.core import Draws
from fedjax_mem.mechanisms import Gaussian
from fedjax_mem.report import plots


@pytest.fixture
def call(capsys):
  """Returns what a command gives: (exit code, rows of its table, other output, errors)."""

  def main(*words):
    code = cli.main(['privacy', *map(str, words)])
    said = capsys.readouterr()
    lines = said.out.splitlines()
    table = [re.split(r'\s{2,}', x) for x in lines if len(x.split()) > 5]
    rows = [dict(zip(table[0], x, strict=True)) for x in table[1:]]
    return code, rows, [x for x in lines if len(x.split()) <= 5], said.err

  return main


def number(text):
  return float(text.replace(',', ''))


def close(text, value):
  """Whether a number in the table is the value to the four digits that it shows."""
  return number(text) == pytest.approx(value, rel=6e-4)


# Poisson, Gaussian, add or remove one, delta 1e-5, by dp-accounting 0.6.0.
REFERENCE = [
  ((120, 3383, 1.2, 100), 1.9861, 1.7075),
  ((256, 60_000, 1.1, 14_062), 2.5966, 2.3817),
  ((100, 10_000, 1.0, 10_000), 6.7128, 6.1877),
  ((100, 100, 5.0, 50), 7.0774, 6.5730),
]


@pytest.mark.slow
@pytest.mark.parametrize(('given', 'rdp', 'pld'), REFERENCE)
def test_the_reference_values(call, given, rdp, pld):
  cohort, population, noise, rounds = given
  code, rows, _, err = call(
    'epsilon', '--population', population, '--cohort', cohort, '--rounds', rounds,
    '--noise-multiplier', noise,
  )  # fmt: skip
  assert (code, err) == (0, '')
  found = {(r['accountant'], r['adjacency']): r['epsilon'] for r in rows}
  assert close(found['RDP', 'add_or_remove_one'], rdp)
  assert close(found['PLD', 'add_or_remove_one'], pld)
  sampling = Draws('poisson', population, cohort, population)
  for accountant, value in (('rdp', rdp), ('pld', pld)):
    claim = account.epsilon(sampling, Gaussian(noise), rounds, 1e-5, accountant=accountant)
    assert claim.epsilon == pytest.approx(value, abs=6e-5)  # to every digit that is published


SMALL = ('--population', 1000, '--cohort', 50, '--rounds', 40)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('scheme', 'mechanism', 'adjacency', 'level'),
  [
    ('poisson', 'gaussian', 'add_or_remove_one', 'Strong'),
    ('without_replacement', 'gaussian', 'replace_one', 'Moderate'),
    ('cyclic', 'gaussian', 'replace_special', 'Moderate'),
    ('poisson', 'laplace', 'add_or_remove_one', None),
    ('without_replacement', 'discrete_gaussian', 'replace_one', 'Minimal'),
  ],
)
def test_every_row_is_what_the_accountant_says(call, scheme, mechanism, adjacency, level):
  code, rows, _, _ = call(
    'epsilon', *SMALL, '--noise-multiplier', 2.5, '--scheme', scheme, '--mechanism', mechanism
  )
  assert code == 0
  assert rows[0]['adjacency'] == adjacency  # the default of the pair comes first
  assert level is None or rows[0]['level'] == level
  assert len({(r['accountant'], r['adjacency']) for r in rows}) == len(rows) >= 2
  for row in rows:
    apart = 20 if scheme == 'cyclic' else 1
    claim = account.epsilon(
      Draws(scheme, 1000, 50, int(row['capacity']), apart), mechanisms.find(mechanism)(2.5),
      40, 1e-5,
      adjacency=row['adjacency'], accountant=row['accountant'].lower(),
    )  # fmt: skip
    assert close(row['epsilon'], claim.epsilon) and close(row['delta'], claim.delta)
    assert row['level'] == claim.level
    assert close(row['noise_share'], 2.5 / 50)


@pytest.mark.parametrize(
  ('mechanism', 'word'),
  [
    ('gaussian', 'ideal noise (float32 simulation)'),
    ('laplace', 'ideal noise (float32 simulation)'),
    ('discrete_gaussian', 'exact (integers)'),
  ],
)
def test_each_command_says_whether_the_noise_is_exact(call, mechanism, word):
  words = (*SMALL, '--mechanism', mechanism, '--accountant', 'rdp')
  words += ('--adjacency', 'replace_special', '--scheme', 'cyclic')
  for command, more in (
    ('epsilon', ('--noise-multiplier', 9)),
    ('calibrate', ('--target-epsilon', 3)),
    ('plan', ('--target-epsilon', 3)),
  ):
    code, rows, _, _ = call(command, *words, *more)
    assert code == 0 and {row['noise'] for row in rows} == {word}


def test_an_accountant_and_an_adjacency_can_be_asked_for(call):
  words = ('epsilon', *SMALL, '--noise-multiplier', 2.5)
  _, rows, _, _ = call(*words, '--accountant', 'pld', '--adjacency', 'replace_one')
  assert [(r['accountant'], r['adjacency']) for r in rows] == [('PLD', 'replace_one')]


@pytest.mark.slow
def test_calibrate_finds_the_number_that_is_left_out(call):
  words = ('calibrate', '--population', 1000, '--target-epsilon', 2)
  _, (row,), _, _ = call(*words, '--cohort', 50, '--rounds', 40)
  assert 1.98 <= number(row['epsilon']) <= 2 and row['target'] == '2'
  noise = number(row['noise_multiplier'])
  claim = account.epsilon(Draws('poisson', 1000, 50, 1000), Gaussian(noise), 40, 1e-5)
  assert claim.epsilon == pytest.approx(2, rel=2e-3)
  _, (row,), _, _ = call(*words, '--cohort', 50, '--noise-multiplier', noise * 1.01)
  assert 40 <= number(row['rounds']) <= 43 and number(row['epsilon']) <= 2
  _, (row,), _, _ = call(*words, '--rounds', 40, '--noise-multiplier', noise * 1.01)
  assert 50 <= number(row['cohort']) <= 52 and number(row['epsilon']) <= 2


@pytest.mark.slow
def test_plan_shows_every_level_and_that_larger_cohorts_pay_less(call):
  _, rows, _, _ = call('plan', *SMALL)
  assert [r['target'] for r in rows] == [x for x in ('1', '2', '5', '10') for _ in range(3)]
  assert [r['cohort'] for r in rows[:3]] == ['50', '200', '800']
  for i in range(0, 12, 3):
    shares = [number(r['noise_share']) for r in rows[i : i + 3]]
    assert shares == sorted(shares, reverse=True)
  _, rows, _, _ = call('plan', *SMALL, '--target-epsilon', 3)
  assert {r['target'] for r in rows} == {'3'}


# The plot.


@pytest.fixture
def drawn(monkeypatch):
  """What is drawn: (curves, title)."""
  seen = []
  epsilon = plots.epsilon

  def watched(curves, title):
    seen.append((curves, title))
    return epsilon(curves, title)

  monkeypatch.setattr(plots, 'epsilon', watched)
  return seen


@pytest.mark.slow
@pytest.mark.parametrize(
  'words',
  [
    ('epsilon', *SMALL, '--noise-multiplier', 2.5),
    ('epsilon', *SMALL, '--noise-multiplier', 2.5, '--scheme', 'cyclic'),
    ('calibrate', *SMALL, '--target-epsilon', 2),
    # Rows of a cohort depend on the budget: those for epsilon 10 would overflow too often.
    ('calibrate', *SMALL, '--target-epsilon', 60),
    (
      'calibrate', '--population', 1000, '--cohort', 50, '--target-epsilon', 2,
      '--noise-multiplier', 3,
    ),
    ('plan', *SMALL, '--target-epsilon', 3),
  ],
  ids=lambda w: ' '.join(map(str, w[0:1] + w[7:])),
)  # fmt: skip
def test_the_plot_ends_where_the_table_does(call, drawn, tmp_path, words):
  file = tmp_path / 'epsilon.png'
  code, rows, others, err = call(*words, '--plot', file)
  assert (code, err) == (0, '')
  assert f'plot: {file}' in ' '.join(''.join(others).split('\n'))
  ((curves, title),) = drawn
  assert title == 'N = 1,000, δ = 1e-05, ideal noise (float32 simulation)'
  assert len(curves) == len(rows)  # no two rows share a label
  for values, row in zip(curves.values(), rows, strict=True):
    assert len(values) == number(row['rounds'])
    assert values == sorted(values) and close(row['epsilon'], values[-1])


@pytest.mark.slow
def test_the_plot_is_a_picture_with_curves_in_it(call, tmp_path):
  file = tmp_path / 'epsilon.png'
  call('epsilon', *SMALL, '--noise-multiplier', 2.5, '--plot', file)
  picture = np.asarray(Image.open(file).convert('RGB'), int)
  assert picture.shape[0] > 300 and picture.shape[1] > 500
  colourful = (picture.max(-1) - picture.min(-1)) > 80
  assert colourful.sum() > 1000 and colourful.mean() < 0.2


@pytest.mark.slow
def test_labels_say_what_tells_the_rows_apart(call, drawn, tmp_path):
  call('plan', *SMALL, '--target-epsilon', 3, '--plot', tmp_path / 'a.png')
  call('epsilon', *SMALL, '--noise-multiplier', 2.5, '--plot', tmp_path / 'b.png')
  call('calibrate', *SMALL, '--target-epsilon', 2, '--plot', tmp_path / 'c.png')
  plan, epsilon, calibrate = ([*curves] for curves, _ in drawn)
  assert all(x.startswith('noise ') and ', cohort ' in x and 'RDP' not in x for x in plan)
  assert epsilon[0] == 'PLD, add-or-remove-one'
  assert len(calibrate) == 1 and calibrate[0].endswith('cohort 50')


# Bad input.


@pytest.mark.parametrize(
  ('words', 'told'),
  [
    (('epsilon', *SMALL, '--noise-multiplier', 0), 'noise_multiplier must be'),
    (('epsilon', *SMALL, '--noise-multiplier', 1, '--delta', 1), 'delta must be'),
    (
      ('epsilon', '--population', 10, '--cohort', 50, '--rounds', 1, '--noise-multiplier', 1),
      'a sampling rate of at most 1',
    ),
    (
      ('epsilon', *SMALL, '--noise-multiplier', 1, '--sampling-rate', 0.1),
      'sampling_rate must be given in place of population and cohort',
    ),
    (
      ('epsilon', '--sampling-rate', 0.1, '--rounds', 1, '--noise-multiplier', 1, '--scheme',
       'without_replacement'),
      'sampling_rate must be left out',
    ),
    (('epsilon', '--rounds', 1, '--noise-multiplier', 1), 'population must be given'),
    (('calibrate', *SMALL, '--target-epsilon', 0), 'target_epsilon must be'),
    (('calibrate', *SMALL, '--target-epsilon', 1, '--noise-multiplier', 1), 'exactly one of'),
    (('calibrate', '--population', 1000, '--target-epsilon', 1), 'exactly one of'),
    (
      ('epsilon', *SMALL, '--noise-multiplier', 1, '--scheme', 'without_replacement',
       '--adjacency', 'add_or_remove_one'),
      'add_or_remove_one',
    ),
    (
      ('epsilon', *SMALL, '--noise-multiplier', 1, '--adjacency', 'neighbours'), 'adjacency must be'
    ),
    (
      ('calibrate', '--population', 1000, '--cohort', 50, '--noise-multiplier', 0.1,
       '--target-epsilon', 0.01),
      'what one round costs',
    ),
  ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(call, words, told):
  code, rows, _, err = call(*words)
  assert (code, rows) == (2, [])
  assert err.startswith('fedjax-mem: error: ') and told in err and err.count('\n') == 1


@pytest.mark.slow
def test_a_sampling_rate_stands_for_the_population_and_the_cohort(call, drawn, tmp_path):
  words = ('--rounds', 40, '--noise-multiplier', 2.5)
  code, rows, _, err = call(
    'epsilon', '--sampling-rate', 0.05, *words, '--plot', tmp_path / 'epsilon.png'
  )
  assert (code, err) == (0, '')
  _, usual, _, _ = call('epsilon', '--population', 1000, '--cohort', 50, *words)
  assert [x['epsilon'] for x in rows] == [x['epsilon'] for x in usual]
  assert {x['sampling_rate'] for x in rows} == {'0.05'}
  ((curves, title),) = drawn
  assert len(curves) == len(rows) and title.startswith('Poisson, δ = 1e-05')


@pytest.mark.slow
def test_a_delta_that_protects_nobody_is_warned_of(call):
  code, _, _, err = call('epsilon', *SMALL, '--noise-multiplier', 2, '--delta', 0.01)
  assert code == 0 and err.startswith('fedjax-mem: warning: delta should be well below 1 / 1000')
