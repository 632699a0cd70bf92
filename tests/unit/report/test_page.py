"""The pieces of a page."""

import pytest
from matplotlib.figure import Figure

from fedjax_mem.report import page


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [
    (0.0042, '0.0042 s'), (0.94, '0.94 s'), (42, '42.0 s'), (59.99, '60.0 s'),
    (185, '3 min 05 s'), (7620, '2 h 07 min'),
  ],
)  # fmt: skip
def test_durations(seconds, text):
  assert page.duration(seconds) == text


@pytest.mark.parametrize(
  ('count', 'text'),
  [
    (0, '0 B'), (999, '999 B'), (1000, '1.0 kB'), (2_600, '2.6 kB'), (999_949, '999.9 kB'),
    (38_500_000, '38.5 MB'), (5e9, '5.0 GB'), (5e15, '5,000.0 TB'),
  ],
)  # fmt: skip
def test_sizes(count, text):
  assert page.size(count) == text


def test_a_picture_is_drawn_for_each_theme_and_width_or_not_at_all():
  drawn = []

  def draw(dark):
    drawn.append(dark)
    return Figure(figsize=(0.3 + dark, 0.3))

  made = page.picture(draw, 'words', draw)
  assert drawn == [False, True] * 2 and made.alt == 'words'
  assert made.narrow == (made.light, made.dark) and made.light != made.dark
  assert made.light.startswith('data:image/png;base64,')
  assert page.picture(draw, 'words').narrow == ()
  assert page.picture(lambda dark: None, 'words') is None
