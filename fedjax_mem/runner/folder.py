"""The folder of a run: its name, its lock, its manifest."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import secrets
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import filelock
import numpy as np

from fedjax_mem._version import __version__
from fedjax_mem.config.load import Config, config_hash, load_config, to_toml
from fedjax_mem.config.sections import ModelSection
from fedjax_mem.models import saved
from fedjax_mem.runner import disk, secret
from fedjax_mem.runner import manifest as manifests

_START = 'init.safetensors'
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def _write(path: pathlib.Path, text: str) -> None:
  """Writes a file atomically: a reader finds the old file or the whole new one."""
  beside = path.with_name(path.name + '.tmp')
  with beside.open('w', encoding='utf-8') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(beside, path)


class RunFolder:
  """One run's folder.

  Attributes:
    path: the folder.
    manifest: facts about the run, as in `manifest.json`; `note` adds to them.
  """

  def __init__(self, path: pathlib.Path):
    """Opens an existing folder.

    Raises:
      ValueError: it is not a run's folder, or its manifest is damaged.
    """
    self.path = path
    missing = [x for x in ('config.toml', manifests.FILE) if not (path / x).is_file()]
    if missing:
      remedy = '' if len(missing) > 1 else f', which has no {missing[0]}: put a copy of it back'
      raise ValueError(
        f'a run must be a folder with config.toml and manifest.json, got {str(path)!r}{remedy}.'
      )
    self.manifest: dict[str, Any] = manifests.read(path)

  @property
  def config(self) -> Config:
    """The run's resolved configuration."""
    return load_config(self.path / 'config.toml')

  @property
  def again(self) -> str:
    """The command that goes on with the run."""
    if self.manifest.get('deployed'):
      return f'fedjax-mem deploy server {self.path} --kit DIR'
    if self.manifest.get('together'):
      return f'fedjax-mem resume {self.manifest["sweep"]}'
    return f'fedjax-mem resume {self.path}'

  def start(self) -> saved.Arrays | None:
    """Returns the arrays that the run starts from, or None if they are drawn.

    Raises:
      ValueError: they are missing, or not those with which the run began.
    """
    wanted = self.config.model.init_hash
    if wanted is None:
      return None
    held = saved.read(self.path / _START)
    if saved.digest(held) != wanted:
      raise ValueError(
        f'{self.path / _START} must hold what the run began with, got other arrays: put '
        f'those of {self.config.model.init or "params"} there.'
      )
    return held

  def note(self, **facts: Any) -> None:
    """Adds facts to the manifest, atomically."""
    self.manifest |= facts
    _write(self.path / 'manifest.json', json.dumps(self.manifest, indent=2) + '\n')

  def check_unfinished(self) -> None:
    """Raises `ValueError` unless a run is a simulation alone, and not finished."""
    said = self.manifest
    if said.get('deployed'):  # its clients have states, and data, of their own
      raise ValueError(
        f'the run in {self.path} must be a simulation to resume it, got one on real machines: go '
        f'on with `{self.again}`.'
      )
    if said.get('together'):
      raise ValueError(
        f'the run in {self.path} must be one alone to resume it, got a lane of a sweep: go on '
        f'with `{self.again}`.'
      )
    # A finished run without a report was killed while the report was written: it may resume.
    if said.get('status') == 'finished' and (self.path / 'report.html').exists():
      raise ValueError(f'the run in {self.path} must be unfinished to resume it: it is finished.')

  def check_config(self) -> None:
    """Raises `ValueError` if the configuration is not the one with which the run began."""
    if config_hash(self.config) != self.manifest.get('config_hash'):
      raise ValueError(
        f'{self.path / "config.toml"} must be what the run began with (but for [execution] and '
        '[deploy]), got a changed one: undo that, or begin a new run with it.'
      )

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Holds the folder's lock for one process; the system frees it when the process dies.

    Raises:
      ValueError: another process holds the lock.
      DiskFull: what is done meanwhile meets a full disk.
    """
    try:
      held = filelock.FileLock(self.path / 'lock', timeout=0).acquire()
    except OSError as error:
      if not isinstance(error, filelock.Timeout):
        raise ValueError(f'{self.path} must be in a folder that can be locked: {error}.') from error
      raise ValueError(
        f'{self.path} is in use by another process; when that has ended, go on with `{self.again}`.'
      ) from error
    with held, disk.told(self.path, self.again):
      yield


def create(
  config: Config,
  out: str | os.PathLike[str],
  root: np.ndarray | None = None,
  start: saved.Arrays | None = None,
  **facts: Any,
) -> RunFolder:
  """Returns a new folder `out/<name>-<hash>`; beside finished runs it ends in `-2`, `-3`, ….

  It is written under another name and then renamed, so that a run's folder is never incomplete.

  Args:
    config: the experiment.
    out: folder in which it is made.
    root: the secret root of the run's noise, uint32 [2], to be kept in it; None: it has none.
    start: the arrays that it starts from, to be kept in it; None: they are drawn.
    **facts: more of the manifest, which it has from the start.

  Raises:
    ValueError: an unfinished run of the same configuration is there, or the folder cannot be
      written.
  """
  stem = pathlib.Path(out) / f'{config.name}-{config_hash(config)}'
  fresh = stem.with_name(f'.{stem.name}.{uuid.uuid4().hex}')
  try:
    fresh.mkdir(parents=True)
    _write(fresh / 'config.toml', to_toml(config))
    said = _facts(config) | facts
    _write(fresh / 'manifest.json', json.dumps(said, indent=2) + '\n')
    if start is not None:
      saved.write(fresh / _START, start)
    if root is not None:
      secret.write(fresh, root, said['run_id'])
    return RunFolder(_rename(fresh, stem))
  except OSError as error:
    raise ValueError(f'the run folder {stem} must be writable, got {error}.') from error
  finally:
    shutil.rmtree(fresh, ignore_errors=True)  # it exists only after an error


def _rename(fresh: pathlib.Path, stem: pathlib.Path) -> pathlib.Path:
  """Renames a folder to the first free name of `stem`, `stem-2`, …, and returns the new path."""
  number = 1
  while True:
    path = stem if number == 1 else stem.with_name(f'{stem.name}-{number}')
    if path.exists():
      _check_finished(path)
      number += 1
      continue
    try:
      fresh.rename(path)
    except OSError:
      if path.exists():  # another process was faster
        continue
      raise
    return path


def _check_finished(path: pathlib.Path) -> None:
  try:
    folder = RunFolder(path)
  except ValueError as error:
    raise ValueError(f'{error} Remove it, or choose another folder with --out.') from error
  if folder.manifest.get('status') in ('finished', 'failed'):  # resumed, it would fail again
    return
  with folder.locked():  # raises if another process is running it
    raise ValueError(
      f'{path} holds a run of this configuration that is not finished: go on with '
      f'`{folder.again}`, or remove it.'
    )


def _facts(config: Config) -> dict[str, Any]:
  return {
    'name': config.name,
    # In the checkpoints and beside the secret root as well: those of another run of the same
    # configuration would release rounds a second time.
    'run_id': secrets.token_hex(16),
    'status': 'running',
    'seed': config.seed,
    'config_hash': config_hash(config),
    **_beginning(config.model),
    'created': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'fedjax_mem': __version__,
    'commit': _commit(),
    'python': platform.python_version(),
    'packages': {name: importlib.metadata.version(name) for name in PACKAGES},
    'machine': f'{platform.system()} {platform.machine()}',
    'warnings': [],
  }


def _beginning(section: ModelSection) -> dict[str, Any]:
  if section.init_hash is None:
    return {}
  return {'init': {'from': section.init or 'params', 'sha256': section.init_hash}}


def _commit() -> str | None:
  """Returns the commit of the running source, with '+' if changed; None outside a checkout."""
  here = pathlib.Path(__file__)

  def git(*args: str) -> str:
    command = ['git', '-C', str(here.parent), *args]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()

  try:
    git('ls-files', '--error-unmatch', here.name)  # site-packages may lie in another repository
    changed = '+' if git('status', '--porcelain', '--', str(here.parents[1])) else ''
    return git('rev-parse', 'HEAD') + changed
  except (OSError, subprocess.SubprocessError):
    return None
