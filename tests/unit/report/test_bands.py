"""Curves with bands: what is drawn is the means and their intervals."""

import numpy as np

from fedjax_mem.report import bands, figures


def test_each_curve_has_its_band_and_the_best_stands_out():
  panel = {
    'a': bands.Band([1, 2, 3], [0.1, 0.2, 0.3], [0.01, 0.02, 0.03]),
    'b': bands.Band([1, 2, 3], [0.2, 0.2, 0.2], None, bold=True),
  }
  figure = bands.curves({'Test accuracy': panel, 'Training loss': panel}, 'sweep', 'chosen by')
  assert figure.get_suptitle() == 'sweep\nchosen by'
  first = figure.axes[0]
  a, b = first.lines
  assert a.get_ydata().tolist() == [0.1, 0.2, 0.3] and b.get_linewidth() > a.get_linewidth()
  (band,) = first.collections
  corners = band.get_paths()[0].vertices
  assert np.isclose(corners[:, 1].min(), 0.09) and np.isclose(corners[:, 1].max(), 0.33)
  names = [x.get_text() for x in figure.legends[0].get_texts()]
  assert names == ['a', '★ b']
  low, high = first.get_ylim()
  assert 0.05 < low < 0.1 and 0.3 < high < 0.35


def test_the_best_is_drawn_even_where_not_all_fit():
  panel = {f'p{i}': bands.Band([1], [float(i)], None, bold=i == 29) for i in range(30)}
  figure = bands.curves({'Training loss': panel}, 'many')
  names = {x.get_text() for x in figure.legends[0].get_texts()}
  assert len(names) == bands.MOST and '★ p29' in names and 'p23' not in names
  assert '6 of 30 points are not drawn' in figure.get_suptitle()


def test_a_figure_is_saved_as_svg_with_its_text(tmp_path):
  draw = lambda: bands.curves({'Training loss': {'a': bands.Band([1], [1.0], None)}}, 'one')
  first, second = (figures.save(draw(), tmp_path / f'{x}.svg').read_bytes() for x in 'xy')
  assert b'<svg' in first and b'Training loss' in first and first == second
