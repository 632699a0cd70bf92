"""Curves over seeds: which runs are one experiment, and what is drawn of them."""

import pytest

from fedjax_mem.report import Run, seeds


def run(seed, rate, values, **more):
  records = [{'round': r, 'test_accuracy': x, **more} for r, x in enumerate(values, 1)]
  config = {'name': 'a', 'seed': seed, 'client': {'learning_rate': rate}}
  return Run(name=f'{rate}-{seed}', records=records, config=config)


def test_experiments_are_means_with_bands_labelled_by_what_differs():
  runs = [run(s, r, [r, r + s / 10]) for r in (0.1, 0.5) for s in (0, 1, 2)]
  figure = seeds.learning_curves([*runs, run(0, 0.9, [0.3])])
  (ax,) = figure.axes
  assert ax.get_title() == 'Test accuracy'
  lines = {x.get_label(): x.get_xydata().ravel() for x in ax.lines}
  assert lines['learning_rate=0.1 (3 seeds)'] == pytest.approx([1, 0.1, 2, 0.2])
  assert lines['learning_rate=0.9 (1 seed)'] == pytest.approx([1, 0.3])
  assert len(ax.collections) == 2  # of one seed there is no band
  # Student's t of 2 degrees of freedom: 4.303 s / sqrt(3).
  top = ax.collections[0].get_paths()[0].vertices[:, 1].max()
  assert top == pytest.approx(0.2 + 4.303 * 0.1 / 3**0.5, abs=1e-3)


def test_panels_are_stacked_in_a_narrow_window_and_marked():
  runs = [run(s, 0.1, [0.5], test_loss=1.0, covered=['round', 'test_loss']) for s in (0, 1)]
  wide, narrow = (seeds.learning_curves(runs, stacked=x) for x in (False, True))
  titles = [ax.get_title() for ax in wide.axes]
  assert titles == [ax.get_title() for ax in narrow.axes]
  assert 'not covered' in titles[0] and titles[1] == 'Test loss'
  assert wide.get_size_inches()[0] > narrow.get_size_inches()[0]
