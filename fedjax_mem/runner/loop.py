"""Runs and resumes one experiment: its parts are built, its folder is opened, its rounds run."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from fedjax_mem.config.load import Config, config_hash
from fedjax_mem.config.start import pinned
from fedjax_mem.core import keys
from fedjax_mem.runner import flags, following, secret
from fedjax_mem.runner import trackers as tracking
from fedjax_mem.runner.cluster import Cluster, join
from fedjax_mem.runner.ending import Result
from fedjax_mem.runner.folder import RunFolder
from fedjax_mem.runner.prepare import Given, facts, get_ready, keeps_root, together
from fedjax_mem.runner.progress import Progress
from fedjax_mem.runner.rounds import Interrupted as Interrupted
from fedjax_mem.runner.rounds import ProgressFn, Rounds
from fedjax_mem.runner.rounds import RunFailed as RunFailed
from fedjax_mem.runner.trackers import Tracker


@keys.fixed()
def run(
  config: Config,
  out: str | os.PathLike[str] = 'runs',
  *,
  params: Any = None,
  data: Given = None,
  data_dir: str | None = None,
  trackers: Sequence[Tracker] = (),
  quiet: bool = False,
  progress: ProgressFn = Progress,
  distributed: bool = False,
) -> Result:
  """Runs an experiment and returns its result; everything is in the run's folder as well.

  >>> import contextlib, tempfile
  >>> config = fm.load_config('quickstart', ['rounds=1', 'data.num_clients=10'])
  >>> with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(None):
  ...   result = run(config, out, quiet=True)
  >>> {'train_loss', 'test_accuracy', 'bytes_up'} <= set(result.metrics[-1])
  True

  Args:
    config: the experiment.
    out: folder in which the run's folder `<name>-<hash>` is made.
    params: parameters to start from, a tree like the model's; None: `model.init`, or a draw.
    data: the data of an experiment whose `data.name` is 'given', before or after its partition.
    data_dir: where prepared data sets are; None: the environment or the default decides.
    trackers: get its records, besides those of `tracking.use`.
    quiet: report progress by plain lines, without a bar.
    progress: (rounds, rounds done before, quiet) -> what shows the progress.
    distributed: find the cluster that has started this process (Slurm, Open MPI, a TPU pod, GKE);
      one that is begun already (`jax.distributed.initialize`) is found in any case.

  Raises:
    ValueError: bad input; nothing has run.
    RunFailed: the run cannot go on; the folder holds the last good checkpoint.
    Interrupted: by Ctrl-C, SIGTERM or SIGHUP, after a checkpoint.
    DiskFull: the disk is full; the folder holds the last good checkpoint.
  """
  config, start = pinned(config, params)
  cluster = join(config.execution.devices, {'configuration': config_hash(config)}, distributed)
  with following.heard(cluster):
    ready = together(cluster, lambda: get_ready(config, data_dir, {}, start, data))
    ready = ready._replace(sim=ready.sim.with_root(cluster.root(ready.sim.root)))
    made = [*tracking.asked(config.tracking), *trackers]
    root = ready.sim.root if keeps_root(ready) else None
    folder = following.made(cluster, ready.config, out, root, ready.start)
    with following.locked(cluster, folder):
      folder.note(data_dir=data_dir and str(pathlib.Path(data_dir).absolute()), **facts(ready))
      return Rounds(ready, folder, made, quiet, progress, cluster).go(None, [])


@keys.fixed()
def resume(
  path: str | os.PathLike[str],
  *,
  data: Given = None,
  data_dir: str | None = None,
  trackers: Sequence[Tracker] = (),
  quiet: bool = False,
  progress: ProgressFn = Progress,
  distributed: bool = False,
) -> Result:
  """Goes on with an unfinished run from its newest sound checkpoint, as if it had not stopped.

  The path is that of the run, such as `resume('runs/quickstart-d5ec03a3')`. Another folder is
  refused:

  >>> resume('configs')
  Traceback (most recent call last):
    ...
  ValueError: a run must be a folder with config.toml and manifest.json, got 'configs'.

  Args:
    path: the run's folder.
    data: as in `run`, the same data.
    data_dir: where prepared data sets are; None: where the run found them.
    trackers: as in `run`.
    quiet: report progress by plain lines, without a bar.
    progress: as in `run`.
    distributed: as in `run`.

  Raises:
    ValueError: not a run's folder, a run that is finished, in use, on real machines or of another
      configuration, one whose files are damaged, whose secret root is missing or of another run,
      or that began under another value of a flag of JAX that matters.
    RunFailed: the run cannot go on.
    CheckpointError: no checkpoint is sound.
    Interrupted: by Ctrl-C, SIGTERM or SIGHUP, after a checkpoint.
    DiskFull: the disk is full.
  """
  first = RunFolder(pathlib.Path(path))  # read by each process, before they meet
  where = first.manifest.get('execution', {}).get('devices', first.config.execution.devices)
  cluster = join(where, {'run': first.manifest.get('run_id')}, distributed)
  with following.heard(cluster):
    folder = following.opened(cluster, pathlib.Path(path))
    with following.locked(cluster, folder):
      loop = _again(cluster, folder, data, data_dir, trackers, quiet, progress)
      return loop.go(*loop.restore())


def _again(
  cluster: Cluster,
  folder: RunFolder,
  data: Given,
  data_dir: str | None,
  trackers: Sequence[Tracker],
  quiet: bool,
  progress: ProgressFn,
) -> Rounds:
  """Returns the loop of a run that goes on; the arguments are those of `resume`."""
  said = folder.manifest
  folder.check_unfinished()
  folder.check_config()
  noted = flags.check(said['flags']) if 'flags' in said else []
  where, how = data_dir or said.get('data_dir'), said.get('execution', {})
  start, digest = folder.start(), said.get('data_sha256')
  ready = together(cluster, lambda: get_ready(folder.config, where, how, start, data, digest))
  root = ready.sim.root
  if keeps_root(ready) and cluster.leads:
    root = secret.read(folder.path, said.get('run_id'))
  ready = ready._replace(sim=ready.sim.with_root(cluster.root(root)))
  if 'execution' not in said:  # killed before its first round
    folder.note(**facts(ready))
  made = [*tracking.asked(folder.config.tracking), *trackers]
  ready = ready._replace(notes=[*ready.notes, *noted])
  return Rounds(ready, folder, made, quiet, progress, cluster)
