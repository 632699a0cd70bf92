"""Reports of runs: metrics files, tables, plots and one self-contained page. Imports no jax."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from fedjax_mem.report.figures import png as png
  from fedjax_mem.report.figures import save as save
  from fedjax_mem.report.html import render as render
  from fedjax_mem.report.html import write_report as write_report
  from fedjax_mem.report.plots import learning_curves as learning_curves
  from fedjax_mem.report.plots import partition as partition
  from fedjax_mem.report.runs import Run as Run
  from fedjax_mem.report.runs import as_runs as as_runs
  from fedjax_mem.report.runs import load_run as load_run
  from fedjax_mem.report.tables import format_table as format_table
  from fedjax_mem.report.tables import over_seeds as over_seeds
  from fedjax_mem.report.tables import runs_table as runs_table
  from fedjax_mem.report.tables import seeds_table as seeds_table
  from fedjax_mem.report.tables import summarise as summarise
  from fedjax_mem.report.tracker import MetricsWriter as MetricsWriter
  from fedjax_mem.report.tracker import read_metrics as read_metrics
  from fedjax_mem.report.tracker import truncate_after as truncate_after
  from fedjax_mem.report.tracker import write_csv as write_csv

# Imported on first use: a run writes its metrics long before it draws a plot, and matplotlib is
# slow to import.
_HOMES = {
  'MetricsWriter': 'tracker',
  'Run': 'runs',
  'as_runs': 'runs',
  'format_table': 'tables',
  'learning_curves': 'plots',
  'load_run': 'runs',
  'over_seeds': 'tables',
  'partition': 'plots',
  'png': 'figures',
  'read_metrics': 'tracker',
  'render': 'html',
  'runs_table': 'tables',
  'save': 'figures',
  'seeds_table': 'tables',
  'summarise': 'tables',
  'truncate_after': 'tracker',
  'write_csv': 'tracker',
  'write_report': 'html',
}


def __getattr__(name: str) -> Any:
  """Imports what is asked for."""
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)
