"""Plots of one aspect of runs: what they show."""

import numpy as np
import pytest

from fedjax_mem.report import Run, panels


def run(name='a', factor=1, **more):
  records = [
    {'round': r, 'bytes_up': 1000 * factor, 'bytes_down': 500, 'epsilon': float(r)}
    for r in (1, 2, 3)
  ]
  records[0]['test_accuracy'], records[2]['test_accuracy'] = 0.5, 0.75
  return Run(name=name, records=records, **more)


def lines(figure):
  return [x.get_xydata().tolist() for x in figure.axes[0].lines]


def test_scores_are_against_all_bytes_until_then():
  assert panels.sent(run()).tolist() == [1500, 3000, 4500]
  figure = panels.traffic([run(), run('b', 3)])
  assert lines(figure) == [[[1.5, 0.5], [4.5, 0.75]], [[3.5, 0.5], [10.5, 0.75]]]
  assert figure.axes[0].get_xlabel() == 'sent to and by all clients until then, kB'
  assert panels.traffic([run()], 'test_r2') is None
  assert panels.traffic([Run(name='x', records=[{'round': 1, 'test_accuracy': 1.0}])]) is None
  covered = run().records[0] | {'covered': ['round']}
  said = panels.traffic([Run(name='x', records=[covered])])
  assert 'not covered' in said.axes[0].get_title()


def test_epsilon_by_round():
  figure = panels.spent(run(config={'privacy': {'delta': 1e-5}}))
  assert lines(figure)[0] == [[1, 1], [2, 2], [3, 3]]
  assert figure.axes[0].get_title() == 'Privacy loss at δ = 1e-05'
  assert panels.spent(Run(name='x', records=[{'round': 1}])) is None


@pytest.mark.parametrize(('name', 'worst'), [('accuracy', [0.0, 0.1]), ('loss', [1.1, 1.0])])
def test_clients_from_the_worst_to_the_best(name, worst):
  scores = np.random.default_rng(0).permutation(12) / 10
  figure = panels.fairness(scores, name)
  first, others = (x.get_data().values.tolist() for x in figure.axes[0].patches)
  assert first == worst and sorted([*first, *others]) == sorted(scores.tolist())
  words = [x.get_text() for x in figure.legends[0].get_texts()]
  assert words[0] == f'worst tenth (2): mean {np.mean(worst):.3g}'
  assert words[1:] == ['the other 10', 'mean 0.55']
  alone = panels.fairness([0.5]).legends[0].get_texts()
  assert [x.get_text() for x in alone] == ['worst tenth (1): mean 0.5', 'mean 0.5']
  with pytest.raises(ValueError, match='scores must be of at least one client'):
    panels.fairness([])
