"""Sweeps: `sweep` runs an experiment at every point of a grid, and sets the results side by side.

Runs whose programs differ in numbers alone are lanes of one program (`host.py`); the others run
in turn, as `run` runs them. A sweep that was stopped goes on where it was, with the same result.
"""

import contextlib
import json
import os
import pathlib
import secrets
from collections.abc import Sequence
from typing import Any

import filelock
import jax

from fedjax_mem.config.load import Config, config_from_dict, to_dict
from fedjax_mem.core import keys, validate
from fedjax_mem.report.tracker import read_metrics
from fedjax_mem.runner import devices, disk
from fedjax_mem.runner.folder import RunFolder
from fedjax_mem.runner.loop import Interrupted, RunFailed, run
from fedjax_mem.runner.loop import resume as resume_run
from fedjax_mem.runner.progress import Progress, Share
from fedjax_mem.studies.sweeps import grid as grids
from fedjax_mem.studies.sweeps import planning, releases, written
from fedjax_mem.studies.sweeps.host import Beside
from fedjax_mem.studies.sweeps.log import METRICS, place
from fedjax_mem.studies.sweeps.outcome import (
  SCORES,
  SELECT,
  LaneResult,
  PointResult,
  SweepResult,
  with_best,
)
from fedjax_mem.studies.sweeps.planning import Planned

FILE = 'sweep.json'
_LANES = 'lanes'


@keys.fixed()
def sweep(
  config: Config,
  grid: grids.Grid,
  seeds: Sequence[int] = (0, 1, 2),
  out: str | os.PathLike[str] = 'runs',
  *,
  select: str | None = None,
  at_once: int | None = None,
  data_dir: str | None = None,
  quiet: bool = False,
) -> SweepResult:
  """Runs an experiment at every point of a grid, for each seed, and returns the results.

  The folder `<name>-sweep-<hash>` in `out` has a table (Markdown, CSV, LaTeX), curves (PNG, SVG),
  all numbers (JSON), and in `lanes/` the folder of each run. A sweep that is there already goes on,
  or, if it is finished, is only written again.

  >>> import contextlib, tempfile
  >>> config = fm.load_config('quickstart', ['rounds=1', 'data.num_clients=10'])
  >>> with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(None):
  ...   found = sweep(config, {'client.learning_rate': [0.001, 0.1]}, [0], out, quiet=True)
  >>> found.best.values, len(found.lanes)
  ({'client.learning_rate': 0.1}, 2)

  Args:
    config: the experiment.
    grid: key of the configuration -> values to try.
    seeds: seeds of each point; a seed is the run's, and that of its partition unless
      `data.partition_seed` is given.
    out: folder in which the sweep's folder is made.
    select: what the best point is chosen by: 'validation' (the task's main score, such as the
      accuracy, on the split of `data.validation`), 'loss' (final training loss) or 'test' (the main
      score on the test set, which every output then says); None: 'validation' if there is such a
      split, else 'loss'.
    at_once: lanes side by side on a device; 1: one after another, which gives the bits of a run
      alone on one device; None: by the size of the model.
    data_dir: folder of prepared data sets; None: the environment or the default decides.
    quiet: report progress by plain lines, without a bar.

  Raises:
    ValueError: bad input; nothing has run.
    Interrupted: by Ctrl-C, after a checkpoint; the same call goes on.
  """
  if jax.distributed.is_initialized():
    raise ValueError('a sweep must run in one process: start it without jax.distributed.')
  points = grids.points(config, grid, seeds)
  chosen = _selection(config, select)
  if at_once is not None:
    validate.integer(at_once=at_once)
  folder = pathlib.Path(out) / grids.name(config, grid, seeds)
  made = _Sweep(folder, points, chosen, at_once, data_dir, quiet)
  said = {
    'config': to_dict(config),
    'grid': {key: list(x) for key, x in grid.items()},
    'seeds': list(seeds),
    'select': chosen,
    'at_once': at_once,
    'data_dir': data_dir and str(pathlib.Path(data_dir).absolute()),
  }
  return made.go(said)


def resume(
  folder: str | os.PathLike[str], *, data_dir: str | None = None, quiet: bool = False
) -> SweepResult:
  """Goes on with a sweep that was stopped, as if it had not been; see `sweep`.

  Raises:
    ValueError: not the folder of a sweep.
  """
  path = pathlib.Path(folder)
  try:
    said = json.loads((path / FILE).read_text())
    config, grid, seeds = config_from_dict(said['config']), said['grid'], said['seeds']
    how = {'select': said['select'], 'at_once': said['at_once']}
    found = data_dir or said['data_dir']
  except OSError as error:
    raise ValueError(f'a sweep must be a folder with {FILE}, got {str(path)!r}.') from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise _damaged(path, error) from error
  return sweep(config, grid, seeds, path.parent, **how, data_dir=found, quiet=quiet)


def _selection(config: Config, select: str | None) -> str:
  """Returns what the best point is chosen by."""
  if select is None:
    return 'validation' if config.data.validation else 'loss'
  validate.one_of(SELECT, select=select)
  if select == 'validation' and not config.data.validation:
    raise ValueError("select must be 'loss' or 'test' without data.validation, got 'validation'.")
  return select


class _Sweep:
  """The runs of one sweep, and its folder."""

  def __init__(
    self,
    folder: pathlib.Path,
    points: Sequence[grids.Point],
    select: str,
    at_once: int | None,
    data_dir: str | None,
    quiet: bool,
  ):
    self.folder, self.select, self.at_once = folder, select, at_once
    self.data_dir, self.quiet, self.points = data_dir, quiet, points
    self.lanes = folder / _LANES
    self.how: dict[int, str] = {}

  def go(self, said: dict[str, Any]) -> SweepResult:
    """Runs what is missing, writes the outputs and returns the result."""
    note = devices.prepare(self.points[0].config.execution.devices)
    devices.start()
    planned = planning.plan(self.points, self.data_dir)
    groups = planning.groups(planned, self.at_once)
    with self._locked():
      said |= {'run_id': self._run_id() or secrets.token_hex(16)}
      self._note(said | {'status': 'running'})
      done, total = self._rounds(planned)
      with Progress(total, done, self.quiet, extra={}) as bar:
        for text in (note, f'folder: {self.folder}', _division(planned, groups)):
          if text:
            bar.note(text)
        for number, group in enumerate(groups):
          self._run(planned, group, number, said['run_id'], bar)
      result = self._result(planned)
      written.write(result, said, self.folder)
      self._note(said | {'status': 'finished'})
    return result

  @contextlib.contextmanager
  def _locked(self) -> Any:
    self.lanes.mkdir(parents=True, exist_ok=True)
    try:
      held = filelock.FileLock(self.folder / 'lock', timeout=0).acquire()
    except filelock.Timeout as error:
      raise ValueError(f'{self.folder} is in use by another process.') from error
    with held, disk.told(self.folder, f'fedjax-mem resume {self.folder}'):
      yield

  def _run_id(self) -> str | None:
    """Returns the id of a sweep that was begun before, or None."""
    file = self.folder / FILE
    try:
      return str(json.loads(file.read_text())['run_id']) if file.exists() else None
    except (ValueError, KeyError, TypeError) as error:
      raise _damaged(self.folder, error) from error

  def _note(self, said: dict[str, Any]) -> None:
    written.whole(self.folder / FILE, json.dumps(said, indent=2) + '\n')

  def _rounds(self, planned: Sequence[Planned]) -> tuple[int, int]:
    """Returns the rounds that are done, and those with the ones that will be."""
    done = total = 0
    for x in planned:
      file = place(x, self.lanes) / METRICS
      recorded = len(read_metrics(file)) if file.exists() else 0
      done += recorded
      total += recorded if self._ended(x) else x.point.config.rounds
    return done, total

  def _run(
    self, planned: Sequence[Planned], group: list[int], number: int, run_id: str, bar: Progress
  ) -> None:
    """Runs a group of lanes, unless it is finished."""
    bar.expect(*self._rounds(planned))
    runs = [planned[i] for i in group]
    if len(group) > 1:
      others = f'{len(group) - 1} other{"s" * (len(group) > 2)}'
      self.how |= dict.fromkeys(group, f'in one program with {others}')
      if all(self._ended(x) for x in runs):
        return
      checkpoints = self.folder / 'checkpoints' / str(number)
      recount = lambda: self._rounds(planned)
      Beside(runs, self.lanes, self.folder, checkpoints, run_id, self.at_once).go(bar, recount)
      return
    (one,) = runs
    reason = one.reason or 'no other run has its program'
    self.how[group[0]] = f'alone: {reason}'
    if not self._ended(one):
      self._alone(one, bar)
      bar.expect(*self._rounds(planned))

  def _ended(self, x: Planned) -> bool:
    """Returns whether a run is in its folder, whole."""
    path = place(x, self.lanes)
    if not path.exists():
      return False
    said = RunFolder(path).manifest
    scored = x.validate is None or 'validation' in said
    return said['status'] == 'failed' or (said['status'] == 'finished' and scored)

  def _alone(self, x: Planned, bar: Progress) -> None:
    """Runs one experiment as `run` does, or goes on with it."""
    path, before = place(x, self.lanes), bar.done
    how: dict[str, Any] = {
      'data_dir': self.data_dir,
      'quiet': self.quiet,
      'progress': lambda total, start, quiet: Share(bar, before),
    }
    bar.note(f'{x.point.label}, seed {x.point.seed}: runs alone')
    try:
      if path.exists():
        (path / 'report.html').unlink(missing_ok=True)  # else a finished run would not go on
        result = resume_run(path, **how)
      else:
        result = run(x.point.config, self.lanes, **how)
    except RunFailed as error:
      bar.note(f'{x.point.label}, seed {x.point.seed}: {error}')
      return
    except Interrupted as error:
      words = f'stopped; go on with: fedjax-mem resume {self.folder}'
      raise Interrupted(words, error.code) from error
    if x.validate is not None:
      RunFolder(path).note(validation=x.validate(result.params))

  def _result(self, planned: Sequence[Planned]) -> SweepResult:
    lanes = [self._lane(i, x) for i, x in enumerate(planned)]
    points: dict[str, list[LaneResult]] = {}
    for lane in lanes:
      points.setdefault(grids.label(lane.values), []).append(lane)
    found = [PointResult(x[0].values, tuple(x)) for x in points.values()]
    together = releases.together(
      [place(x, self.lanes) for x in planned], self.points[0].config.noise_seed is not None
    )
    return SweepResult(with_best(found, self.select), self.select, self.folder, together)

  def _lane(self, i: int, x: Planned) -> LaneResult:
    folder = RunFolder(place(x, self.lanes))
    file = folder.path / METRICS
    metrics = read_metrics(file) if file.exists() else []
    last = metrics[-1] if metrics else {}
    scores = {key: last[key] for key in (*SCORES, 'epsilon') if key in last}
    held = folder.manifest.get('validation', {})
    scores |= {f'validation_{key}': value for key, value in held.items()}
    said = folder.manifest.get('coverage', {})
    failure = folder.manifest.get('failure', '')
    status = 'failed' if failure else 'finished'
    uncovered = tuple(said.get('not covered', ()))
    return LaneResult(
      x.point.values, x.point.seed, metrics, folder.path, status, self.how[i], failure, scores,
      uncovered,
    )  # fmt: skip


def _damaged(folder: pathlib.Path, error: Exception) -> ValueError:
  return ValueError(
    f'{folder / FILE} must be as the sweep wrote it, got an error: {error!r}; move the folder away '
    'to begin again: its ledgers say what was released.'
  )


def _division(planned: Sequence[Planned], groups: Sequence[Sequence[int]]) -> str:
  """Returns in words which runs are lanes of one program, and which run in turn."""
  sizes = [len(x) for x in groups if len(x) > 1]
  alone = len(planned) - sum(sizes)
  parts = [f'{size} in one program' for size in sizes] + [f'{alone} alone'] * bool(alone)
  return f'{len(planned)} runs: {", ".join(parts)}' + (', in turn' if len(groups) > 1 else '')
