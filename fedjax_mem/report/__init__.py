"""Reports of runs: metrics files, tables, plots and one self-contained page. Imports no jax."""

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
