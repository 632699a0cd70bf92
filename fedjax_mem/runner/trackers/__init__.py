"""Trackers: where the records of a run go besides its own folder, one a file.

A tracker is a `Tracker` with any of its five methods. `TRACKERS` has those that a configuration
names; others are objects (`fm.run(config, trackers=[mine])`) or 'package.module:factory'.
"""

from collections.abc import Callable

from fedjax_mem.config import registry
from fedjax_mem.config.places import TrackingSection
from fedjax_mem.core.factories import Wanted
from fedjax_mem.runner.trackers._base import About as About
from fedjax_mem.runner.trackers._base import Tracker as Tracker
from fedjax_mem.runner.trackers._base import Trackers as Trackers
from fedjax_mem.runner.trackers._base import numbers as numbers
from fedjax_mem.runner.trackers.csv import Csv
from fedjax_mem.runner.trackers.mlflow import Mlflow
from fedjax_mem.runner.trackers.tensorboard import TensorBoard
from fedjax_mem.runner.trackers.wandb import Wandb

TRACKERS: dict[str, Callable[..., Tracker]] = {
  'csv': Csv,
  'mlflow': Mlflow,
  'tensorboard': TensorBoard,
  'wandb': Wandb,
}

_WANTED = Wanted((Tracker,), 'a Tracker')


def asked(section: TrackingSection) -> list[Tracker]:
  """Returns the trackers that a configuration names.

  Raises:
    ValueError: an unknown name or option, or a package that is not installed.
  """
  made = []
  for name in section.use:
    options = section.options.get(name, {})
    made.append(registry.made('tracking', 'use', name, TRACKERS, options, _WANTED))
  return made
