"""Heat maps hold the scores they are given."""

import pytest

from fedjax_mem.report import figures, heatmap

CELLS = {('mean', 'none'): [0.8, 0.9], ('mean', 'alie'): [0.1], ('krum', 'none'): [0.5]}


def test_a_map_shows_means_and_leaves_blanks():
  figure = heatmap.heatmap({'iid': CELLS, 'skewed': {('krum', 'alie'): [0.25]}}, 'a $title$')
  first, second, _ = figure.axes
  assert [t.get_text() for t in first.texts] == ['85', '10', '50']
  assert [t.get_text() for t in second.texts] == ['25'] and second.texts[0].get_position() == (1, 1)
  assert [t.get_text() for t in first.get_yticklabels()] == ['mean', 'krum']
  assert [t.get_text() for t in first.get_xticklabels()] == ['none', 'alie']
  assert first.get_images()[0].get_array()[0, 0] == pytest.approx(85)
  assert figures.png(figure).startswith(b'\x89PNG')
