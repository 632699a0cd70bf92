"""Reports of runs: metrics files, tables, plots and one self-contained page. Imports no jax."""

from fedjax_mem.report.figures import png, save
from fedjax_mem.report.html import render, write_report
from fedjax_mem.report.plots import learning_curves, partition
from fedjax_mem.report.runs import Run, as_runs, load_run
from fedjax_mem.report.tables import (
  format_table,
  over_seeds,
  runs_table,
  seeds_table,
  summarise,
)
from fedjax_mem.report.tracker import MetricsWriter, read_metrics, truncate_after, write_csv
