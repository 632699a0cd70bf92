"""Checkpoints: the whole state between two rounds, atomic, checked when they are read.

Orbax writes each into a temporary folder and renames it, so a process killed at any moment leaves
either a whole checkpoint or none. A checkpoint is a flat table of arrays and a checksum of their
bytes, with the id of the run beside it. A checkpoint with a truncated or replaced file, or of
another run, is refused, and the one before it is used.
"""

import functools
import logging
import pathlib
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from fedjax_mem.core import State
from fedjax_mem.runner import disk


class CheckpointError(RuntimeError):
  """A checkpoint cannot be written, or none can be read."""


class _Unsound(ValueError):
  """A checkpoint that is damaged, or of another run."""


@functools.cache
def _silence() -> None:
  """Keeps what Orbax's threads print of files that they cannot read from the terminal.

  Of a damaged checkpoint they report, after the error, that nobody waits for them any more; other
  threads may say the same of their own loops only where nobody listens, either.
  """
  before = sys.excepthook

  def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    elsewhere = threading.current_thread() is not threading.main_thread()
    if not (elsewhere and kind is RuntimeError and str(error) == 'Event loop is closed'):
      before(kind, error, trace)

  sys.excepthook = hook


class Checkpoints:
  """The checkpoints of one run, by the number of rounds done."""

  def __init__(
    self,
    folder: str | pathlib.Path,
    keep: int = 3,
    private: bool = False,
    run_id: str | None = None,
    read_only: bool = False,
  ):
    """Opens the folder, which is made if there is none.

    Args:
      folder: folder of the checkpoints.
      keep: number of newest checkpoints that are kept.
      private: nobody but its owner can open the folder: it holds states of single clients, which a
        claim of privacy does not cover.
      run_id: id of the run, as in its manifest; None: it has none, nor have its checkpoints.
      read_only: nothing is made or removed: another process may be writing a checkpoint.

    Raises:
      CheckpointError: the folder cannot be written.
    """
    self.folder = pathlib.Path(folder).absolute()
    self._owner = {} if run_id is None else {'run_id': run_id}
    self._keep, self._read_only = keep, read_only
    if read_only:
      return
    try:
      self.folder.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
      if private:
        self.folder.chmod(0o700)  # it may have been copied here
    except OSError as error:
      raise self._unfit(error) from error

  def _unfit(self, error: OSError) -> CheckpointError:
    return CheckpointError(f'checkpoints cannot be kept in {self.folder}: {error}')

  @functools.cached_property
  def _ocp(self) -> Any:
    # Imported at the first checkpoint: it takes a while, and the first round would wait for it.
    import orbax.checkpoint as ocp

    logging.getLogger('absl').setLevel(logging.CRITICAL)  # this class reports Orbax's errors
    return ocp

  @functools.cached_property
  def _manager(self) -> Any:
    options = self._ocp.CheckpointManagerOptions(
      max_to_keep=self._keep,
      enable_async_checkpointing=False,
      cleanup_tmp_directories=not self._read_only,
      read_only=self._read_only,
    )
    try:
      return self._ocp.CheckpointManager(self.folder, options=options)
    except OSError as error:
      raise self._unfit(error) from error

  def save(self, state: State) -> int:
    """Writes the state and returns its number, the rounds done; an existing checkpoint is kept.

    Raises:
      CheckpointError: it cannot be written (a full disk, a folder without permission).
    """
    flat = {name: np.asarray(x) for name, x in _flatten(jax.device_get(state)).items()}
    number = int(flat['round'])
    if number in self._manager.all_steps():
      return number
    args = self._ocp.args
    try:
      saved = self._manager.save(
        number,
        args=args.Composite(
          # Orbax refuses empty arrays; `_read` makes them again from their shapes.
          state=args.StandardSave({name: x for name, x in flat.items() if x.size}),
          check=args.JsonSave({'crc32': _checksum(flat), **_of_params(flat), **self._owner}),
        ),
      )
      self._manager.wait_until_finished()
    except Exception as error:  # Orbax lets errors of several libraries through
      full = disk.reason(error)
      said = str(error)
      if full is not None:
        said = f'the disk of {self.folder} is full ({full}); free some space, then resume the run'
      raise CheckpointError(
        f'the checkpoint of round {number} cannot be written: {said}'
      ) from error
    if not saved:  # Orbax saves nothing that is older than its newest
      raise CheckpointError(
        f'the checkpoint of round {number} was not written: a newer one is there'
      )
    return number

  def parameters(self) -> tuple[int, dict[str, np.ndarray]]:
    """Returns (rounds done, path -> array) of the parameters in the newest sound checkpoint.

    Raises:
      CheckpointError: there is no checkpoint, or none is sound.
    """
    said = []
    for number in self.numbers():
      try:
        flat, check = self._arrays(number)
        found = _of_params(flat)
        if check.get('params_crc32', found['params_crc32']) != found['params_crc32']:
          raise _Unsound('its checksum does not match its contents')
      except _Unsound as error:
        said.append(f'checkpoint {number} is refused: {error}')
        continue
      return number, {_of_tree(name): x for name, x in flat.items() if _is_param(name)}
    raise CheckpointError(f'no sound checkpoint in {self.folder}: {"; ".join(said) or "none"}.')

  def numbers(self) -> list[int]:
    """Returns the numbers of the existing checkpoints, newest first."""
    return sorted(self._manager.all_steps(), reverse=True)

  def restore(
    self, like: State, recorded: Callable[[State], bool] = lambda state: True
  ) -> tuple[State, list[str]]:
    """Returns the newest sound checkpoint whose rounds are recorded, and a line about each newer.

    Where no sound checkpoint is so early that all its rounds are recorded, it is the oldest one:
    after it the fewest records are lost. Newer checkpoints are removed, since their rounds are
    saved again, unless there is no sound one.

    Args:
      like: shapes and dtypes of the state.
      recorded: whether there are records of all rounds of a state.

    Raises:
      CheckpointError: there is no checkpoint, or none is sound; the message says what to do.
    """
    numbers = self.numbers()
    said: dict[int, str] = {}
    found: tuple[int, State] | None = None
    for number in numbers:
      try:
        state = self._read(number, like)
      except _Unsound as error:
        said[number] = f'checkpoint {number} is refused: {error}'
        continue
      found = number, state
      if recorded(state):
        break
      said[number] = f'checkpoint {number} is left out: the records of its rounds are incomplete'
    if found is None:
      raise CheckpointError(self._nothing('; '.join(said.values())))
    newer = [number for number in numbers if number > found[0]]
    for number in newer:
      self._manager.delete(number)
    return found[1], [said[number] for number in newer]

  def _nothing(self, reasons: str) -> str:
    remedy = 'put a sound one back, or remove this folder: resumed, the run begins again at round 1'
    return f'no sound checkpoint in {self.folder}: {reasons or "there is none"}; {remedy}.'

  def _arrays(self, number: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns (path -> array, checksums) of a checkpoint; raises `_Unsound`."""
    args = self._ocp.args
    _silence()
    try:
      read = self._manager.restore(
        number, args=args.Composite(state=args.StandardRestore(), check=args.JsonRestore())
      )
      flat = {name: np.asarray(x) for name, x in read.state.items()}
      check, owner = dict(read.check), read.check.get('run_id')
    except Exception as error:  # a damaged file may raise anything
      reason = ' '.join(str(error).split())[:160] or type(error).__name__
      raise _Unsound(f'it cannot be read ({reason})') from error
    if owner != self._owner.get('run_id'):
      raise _Unsound('it is of another run')
    return flat, check

  def _read(self, number: int, like: State) -> State:
    flat, check = self._arrays(number)
    wanted = _flatten(like)
    # Empty arrays are not on the disk.
    empty = {name: np.zeros(x.shape, x.dtype) for name, x in wanted.items() if 0 in x.shape}
    flat = {**empty, **flat}
    _check_fits(flat, wanted)
    if _checksum(flat) != check.get('crc32'):
      raise _Unsound('its checksum does not match its contents')
    structure = jax.tree.structure(like)
    state: State = jax.tree.unflatten(structure, [flat[name] for name in wanted])
    return state

  def close(self) -> None:
    """Releases the folder."""
    if '_manager' in vars(self):  # else nothing was opened
      self._manager.close()


def _is_param(name: str) -> bool:
  return name == 'params' or name.startswith('params/')


def _of_tree(name: str) -> str:
  """Returns the path of an array within the parameters; a tree that is one array has 'params'."""
  return name.removeprefix('params/')


def _of_params(flat: dict[str, np.ndarray]) -> dict[str, int]:
  return {'params_crc32': _checksum({name: x for name, x in flat.items() if _is_param(name)})}


def _flatten(state: State) -> dict[str, Any]:
  """Returns path -> leaf, in the order of the leaves."""
  return dict(_paths(state))


def _paths(state: State) -> Iterator[tuple[str, Any]]:
  for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
    yield jax.tree_util.keystr(path, simple=True, separator='/'), leaf


def _check_fits(flat: dict[str, np.ndarray], wanted: dict[str, Any]) -> None:
  """Raises `_Unsound` unless the arrays have the names, shapes and dtypes that are wanted."""
  for name in sorted(set(flat) ^ set(wanted)):
    has, lacks = ('it has', 'the run has not') if name in flat else ('the run has', 'it has not')
    raise _Unsound(f'{has} {name!r}, {lacks}: it is of another experiment')
  for name, x in wanted.items():
    got = flat[name]
    if (got.shape, got.dtype) != (x.shape, x.dtype):
      raise _Unsound(
        f'its {name!r} is {got.dtype}{got.shape}, the run has {x.dtype}{x.shape}: it is of another '
        'experiment'
      )


def _checksum(flat: dict[str, np.ndarray]) -> int:
  crc = 0
  for name in sorted(flat):
    x = flat[name]
    crc = zlib.crc32(f'{name}{x.dtype}{x.shape}'.encode(), crc)
    crc = zlib.crc32(np.ascontiguousarray(x).tobytes(), crc)
  return crc
