"""Pictures: they are PNG files of the right content, whatever was recorded."""

import io
import math

import matplotlib
import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure

from fedjax_mem.report import Run, learning_curves, partition, png, save


def pixels(figure):
  data = png(figure, dpi=50)
  assert data.startswith(b'\x89PNG')
  return image.imread(io.BytesIO(data))


def run(accuracies, losses=(), name='x', test_losses=()):
  records = []
  for i in range(max(len(accuracies), len(losses), len(test_losses))):
    record = {'round': i + 1}
    for key, values in (
      ('test_accuracy', accuracies), ('train_loss', losses), ('test_loss', test_losses),
    ):  # fmt: skip
      if i < len(values):
        record[key] = values[i]
    records.append(record)
  return Run(name=name, records=records)


def titles(figure):
  return [ax.get_title() for ax in figure.axes]


def test_both_panels_are_titled_and_labelled():
  figure = learning_curves(run([0.1, 0.5], [2.0, 1.0], test_losses=[2.1, 1.1]))
  assert titles(figure) == ['Test accuracy', 'Loss']
  for ax in figure.axes:
    assert ax.get_xlabel() == 'round' and ax.get_ylabel()
  assert figure.get_suptitle() == 'x: learning curves'
  np.testing.assert_array_equal(figure.axes[0].lines[0].get_xydata(), [[1, 0.1], [2, 0.5]])
  assert [line.get_label() for line in figure.axes[1].lines] == ['training clients', 'test set']
  assert pixels(figure).std() > 0


def test_a_curve_that_a_claim_does_not_cover_says_so():
  claimed = [
    {'round': r, 'train_loss': 2.0, 'test_loss': 2.1, 'covered': ['round', 'test_loss']}
    for r in (1, 2)
  ]
  (ax,) = learning_curves(Run(name='x', records=claimed)).axes
  said = [line.get_label() for line in ax.lines]
  assert said == ['training clients (not covered by ε)', 'test set']
  (ax,) = learning_curves([claimed, claimed]).axes
  assert ax.get_title() == 'Loss: test (bold),\ntraining clients (not covered by ε) (thin, dashed)'


def test_scores_on_the_test_set_that_a_claim_does_not_cover_say_so():
  scores = {'test_loss': 2.1, 'test_accuracy': 0.5, 'covered': ['round']}
  claimed = [{'round': r, **scores} for r in (1, 2)]
  accuracy, loss = learning_curves(Run(name='x', records=claimed)).axes
  assert accuracy.get_title() == 'Test accuracy (not covered by ε)'
  assert [line.get_label() for line in loss.lines] == ['test set (not covered by ε)']
  both = [x | {'train_loss': 2.0} for x in claimed]
  figure = learning_curves([both, both])
  title = figure.axes[1].title
  assert title.get_text().startswith('Loss: test (not covered by ε) (bold),\n')
  figure.draw_without_rendering()
  assert title.get_window_extent().x1 <= figure.bbox.x1  # nothing of it is cut


def test_the_clients_have_a_panel_with_the_worst_tenth():
  records = [
    {'round': 1, 'client_accuracy_mean': 0.5, 'client_accuracy_worst': 0.1, 'covered': ['round']}
  ]
  (ax,) = learning_curves(Run(name='x', records=records)).axes
  assert ax.get_title() == 'Accuracy on what clients hold out (not covered by ε)'
  assert [x.get_label() for x in ax.lines] == ['mean of the clients', 'mean of the worst tenth']
  assert [x.get_ydata().tolist() for x in ax.lines] == [[0.5], [0.1]]
  figure = learning_curves([records, records])
  assert titles(figure)[0].startswith('Clients: mean (bold), worst tenth')
  assert len(figure.legends[0].get_texts()) == 2


def test_a_run_without_tests_has_one_panel():
  figure = learning_curves(run([], [2.0, 1.0]))
  assert titles(figure) == ['Loss']
  pixels(figure)


def test_one_record_is_seen():
  figure = learning_curves([{'round': 1, 'train_loss': 2.0, 'test_accuracy': 0.5}])
  for ax in figure.axes:
    line = ax.lines[0]
    assert line.get_marker() not in ('', 'None', None)
    assert line.get_markevery() == [0]
  pixels(figure)


def test_nothing_recorded_is_said():
  figure = learning_curves([[]])
  assert 'no losses' in figure.axes[0].texts[0].get_text()
  pixels(figure)


def test_a_curve_breaks_where_it_is_not_finite_and_a_cross_says_so():
  losses = [2.0, 1.5, math.nan, math.inf, 1.0] + [0.9] * 30
  figure = learning_curves(run([], losses))
  (ax,) = figure.axes
  curve, crosses = ax.lines
  np.testing.assert_array_equal(np.isnan(curve.get_ydata())[:5], [False, False, True, True, False])
  np.testing.assert_array_equal(crosses.get_xdata(), [3])
  assert 'not finite' in ax.get_xlabel()
  pixels(figure)


def test_all_nan_is_drawn():
  pixels(learning_curves(run([math.nan] * 3, [math.nan] * 3)))


def test_losses_of_very_different_sizes_are_on_a_log_scale():
  assert learning_curves(run([], [1000.0, 1.0])).axes[0].get_yscale() == 'log'
  assert learning_curves(run([], [3.0, 1.0])).axes[0].get_yscale() == 'linear'
  assert learning_curves(run([], [1000.0, 0.0])).axes[0].get_yscale() == 'linear'


def test_runs_are_told_apart_by_more_than_colour():
  runs = [run([0.1, 0.2 + i / 100], name=f'run-{i}') for i in range(20)]
  figure = learning_curves(runs)
  looks = {
    (line.get_color(), line.get_linestyle(), line.get_marker()) for line in figure.axes[0].lines
  }
  assert len(looks) == 20
  (legend,) = figure.legends
  assert [text.get_text() for text in legend.get_texts()] == [x.name for x in runs]
  pixels(figure)


def test_names_are_not_mathematics():
  figure = learning_curves([run([0.1], name='$\\frac{$ <script> _x_'), run([0.2], name='_hidden')])
  pixels(figure)


def test_dark_paper_is_dark():
  x = run([0.1, 0.2], [1.0, 0.5])
  assert pixels(learning_curves(x, dark=True)).mean() < 0.4 < pixels(learning_curves(x)).mean()


def test_the_global_style_stays():
  before = dict(matplotlib.rcParams)
  png(learning_curves(run([0.1, 0.2])))
  assert dict(matplotlib.rcParams) == before


def test_the_same_figure_gives_the_same_bytes(tmp_path):
  x = run([0.1, 0.2], [1.0, 0.5])
  path = save(learning_curves(x), tmp_path / 'deep' / 'x.png')
  assert path.read_bytes() == png(learning_curves(x))


def test_the_areas_of_bubbles_are_the_counts():
  counts = np.array([[4, 0, 1], [0, 2, 0]])
  figure = partition(counts, labels=['a', 'b', 'c'], title='toy')
  above, ax = figure.axes
  bubbles = ax.collections[0]
  np.testing.assert_array_equal(bubbles.get_offsets(), [[0, 0], [0, 2], [1, 1]])
  np.testing.assert_allclose(bubbles.get_sizes() / bubbles.get_sizes()[0], [1, 0.25, 0.5])
  assert [bar.get_height() for bar in above.patches] == [5, 2]
  assert [text.get_text() for text in ax.get_yticklabels()] == ['a', 'b', 'c']
  assert figure.get_suptitle() == 'toy: 2 clients, 7 examples'
  assert (ax.get_xlabel(), ax.get_ylabel()) == ('client', 'label')
  pixels(figure)


@pytest.mark.slow
@pytest.mark.parametrize('clients', [61, 300, 4500])
def test_many_clients_are_a_heat_map_of_the_counts(clients):
  counts = np.random.default_rng(0).integers(0, 200, (clients, 7))
  figure = partition(counts)
  (heat,) = figure.axes[1].images
  step = -(-clients // 2000)
  np.testing.assert_array_equal(np.ma.filled(heat.get_array(), 0), counts[::step].T)
  assert f'{counts.sum():,} examples' in figure.get_suptitle()
  pixels(figure)


def test_edges_of_partitions():
  pixels(partition([[0]]))
  pixels(partition(np.zeros((100, 3), int)))
  pixels(partition(np.ones((3, 100), int), dark=True))


@pytest.mark.parametrize('counts', [[1, 2], [[]], [[-1]], np.zeros((0, 3))])
def test_bad_counts_are_refused(counts):
  with pytest.raises(ValueError, match='counts must be a table'):
    partition(counts)


def test_labels_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='labels must be 2 names, got 1'):
    partition([[1, 2]], labels=['a'])


def test_a_figure_in_other_colours_takes_the_places_of_the_first_and_can_be_laid_out_again():
  counts, names = np.array([[3, 5], [2, 1]]), (['a', 'b'], ['a much longer name', 'b'])
  light, other = (partition(counts, x) for x in names)
  png(light)
  places = [ax.get_position().bounds for ax in light.axes]
  own = png(other)
  assert [ax.get_position().bounds for ax in other.axes] != places
  png(other, like=light)
  assert [ax.get_position().bounds for ax in other.axes] == places
  assert png(other) == own  # nothing of it stays
  assert png(other, like=Figure()) == own  # other panels: its own places
