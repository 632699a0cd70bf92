"""Learning curves of runs that differ in their seeds: means with bands, one for each experiment."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from fedjax_mem.report import bands
from fedjax_mem.report.runs import Run, marked, series
from fedjax_mem.report.tables import by_settings, differing_keys, settings_of, show

_PANELS = {
  'test_accuracy': 'Test accuracy',
  'test_r2': 'Test R²',
  'test_mean_average_precision': 'Test mean average precision',
  'client_accuracy_worst': 'Accuracy of the worst tenth of the clients',
  'test_loss': 'Test loss',
  'train_loss': 'Training loss',
}
_MOST = 3  # panels
_SEEDS = ('seed', 'noise_seed', 'data.partition_seed', 'name')


def learning_curves(runs: Sequence[Run], dark: bool = False, stacked: bool = False) -> Figure:
  """Returns a plot with the mean over seeds of each experiment, and its 95% interval as a band.

  Args:
    runs: the runs; those whose settings are equal but for their seeds are one experiment.
    dark: whether the background is dark.
    stacked: whether the panels are one above the other.
  """
  groups = by_settings(runs)
  labels = _labels(groups)
  panels: dict[str, dict[str, bands.Band]] = {}
  for key, heading in _PANELS.items():
    found = {}
    for label, group in zip(labels, groups, strict=True):
      made = bands.band([dict(zip(*series(run, key), strict=True)) for run in group])
      if made is not None:
        found[label] = made
    if found and len(panels) < _MOST:
      panels[marked(heading, key, runs)] = found
  title = f'{len(groups)} experiment{"s" * (len(groups) > 1)}, {len(runs)} runs'
  notes = "mean over seeds; the band is its 95% interval by Student's t"
  return bands.curves(panels, title, notes, dark, stacked)


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
  """Returns a label for each experiment: what differs between them, and the number of seeds."""
  first = [group[0] for group in groups]
  differing = [key for key in differing_keys(first) if key not in _SEEDS]
  made: list[str] = []
  for group in groups:
    settings = settings_of(group[0])
    said = ', '.join(f'{key.rpartition(".")[2]}={show(settings.get(key))}' for key in differing)
    name = said or str(group[0].config.get('name', group[0].name))
    label = f'{name} ({len(group)} seed{"s" * (len(group) > 1)})'
    made.append(f'{label} · {made.count(label) + 1}' if label in made else label)
  return made
