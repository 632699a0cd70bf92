"""Checkpoints: the whole state between two rounds, atomic, checked when they are read.

Orbax writes each into a temporary folder and renames it, so a process killed at any moment leaves
either a whole checkpoint or none. A checkpoint is a flat table of arrays and a checksum of every
shard of each (`checksums.py`), with the id of the run beside it. A checkpoint with a missing,
truncated or replaced file, or of another run, is refused, and the one before it is used.

All processes of a cluster write and read their own shards; no process has the whole state. It may
be read by other processes, and onto other devices, than it was written by.
"""

import functools
import logging
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import State
from fedjax_mem.engine.mesh import put
from fedjax_mem.runner import checksums, disk
from fedjax_mem.runner.cluster import Cluster


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
    cluster: Cluster | None = None,
  ):
    """Opens the folder, which is made if there is none.

    Args:
      folder: folder of the checkpoints.
      keep: number of newest checkpoints that are kept.
      private: nobody but its owner can open the folder: it holds states of single clients, which a
        claim of privacy does not cover.
      run_id: id of the run, as in its manifest; None: it has none, nor have its checkpoints.
      read_only: nothing is made or removed: another process may be writing a checkpoint.
      cluster: the processes that write and read together; None: this one alone.

    Raises:
      CheckpointError: the folder cannot be written.
    """
    self.folder = pathlib.Path(folder).absolute()
    self._owner = {} if run_id is None else {'run_id': run_id}
    self._keep, self._read_only = keep, read_only
    self._cluster = Cluster() if cluster is None else cluster
    if read_only or not self._cluster.leads:
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
    flat = {name: _writable(x) for name, x in _flatten(state).items()}
    number = int(flat['round'])
    if self._cluster.agree(number in self._manager.all_steps()):
      return number
    # Orbax refuses empty arrays; `_read` makes them again from their shapes.
    kept = {name: x for name, x in flat.items() if x.size}
    mine = {name: checksums.of(x) for name, x in kept.items()}
    facts = {name: {'dtype': str(x.dtype), 'shape': x.shape} for name, x in kept.items()}
    every = self._cluster.all(mine)
    arrays = {
      name: {**fact, 'shards': [x for some in every for x in some[name]]}
      for name, fact in facts.items()
    }
    args = self._ocp.args
    try:
      saved = self._manager.save(
        number,
        args=args.Composite(
          state=args.StandardSave(kept), check=args.JsonSave({'arrays': arrays, **self._owner})
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
        check = self._check(number)
        flat = self._arrays(number, _on_host(check))
        params = {name: x for name, x in flat.items() if _is_param(name)}
        sums = {name: checksums.total(checksums.of(x)) for name, x in params.items()}
        for reason in _differing([sums], check):
          raise _Unsound(reason)
      except _Unsound as error:
        said.append(f'checkpoint {number} is refused: {error}')
        continue
      return number, {_of_tree(name): x for name, x in flat.items() if _is_param(name)}
    raise CheckpointError(f'no sound checkpoint in {self.folder}: {"; ".join(said) or "none"}.')

  def numbers(self) -> list[int]:
    """Returns the numbers of the existing checkpoints, newest first."""
    numbers: list[int] = sorted(self._manager.all_steps(), reverse=True)
    return self._cluster.agree(numbers)

  def restore(
    self,
    like: State,
    recorded: Callable[[State], bool] = lambda state: True,
    shardings: Any = None,
  ) -> tuple[State, list[str]]:
    """Returns the newest sound checkpoint whose rounds are recorded, and a line about each newer.

    Where no sound checkpoint is so early that all its rounds are recorded, it is the oldest one:
    after it the fewest records are lost. Newer checkpoints are removed, since their rounds are
    saved again, unless there is no sound one.

    Args:
      like: shapes and dtypes of the state.
      recorded: whether there are records of all rounds of a state; the same on every process.
      shardings: where its arrays go, a prefix of its tree; None: to the host.

    Raises:
      CheckpointError: there is no checkpoint, or none is sound; the message says what to do.
    """
    numbers = self.numbers()
    said: dict[int, str] = {}
    found: tuple[int, State] | None = None
    for number in numbers:
      state, reason = self._tried(number, like, shardings)
      if reason is not None:
        said[number] = f'checkpoint {number} is refused: {reason}'
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

  def _tried(self, number: int, like: State, shardings: Any) -> tuple[Any, str | None]:
    """Returns (state, None), or (None, why it is refused), the same on all processes."""
    reason: str | None = None
    flat: dict[str, Any] = {}
    check: dict[str, Any] = {}
    try:
      flat, check = self._read(number, like, shardings)
    except _Unsound as error:
      reason = str(error)
    mine = {name: checksums.total(checksums.of(x)) for name, x in flat.items()}
    every = self._cluster.all({'reason': reason, 'sums': mine})
    reasons = [x['reason'] for x in every if x['reason'] is not None]
    if not reasons:
      reasons = [*_differing([x['sums'] for x in every], check)]
    if reasons:
      return None, reasons[0]
    structure = jax.tree.structure(like)
    return jax.tree.unflatten(structure, [flat[name] for name in _flatten(like)]), None

  def _nothing(self, reasons: str) -> str:
    remedy = 'put a sound one back, or remove this folder: resumed, the run begins again at round 1'
    return f'no sound checkpoint in {self.folder}: {reasons or "there is none"}; {remedy}.'

  def _check(self, number: int) -> dict[str, Any]:
    """Returns what is beside the arrays of a checkpoint; raises `_Unsound`."""
    check: dict[str, Any] = dict(self._restored(number, check=self._ocp.args.JsonRestore()).check)
    if check.get('run_id') != self._owner.get('run_id'):
      raise _Unsound('it is of another run')
    if not isinstance(check.get('arrays'), dict):
      raise _Unsound('it cannot be read (nothing says which arrays it has)')
    return check

  def _arrays(self, number: int, wanted: Any) -> dict[str, Any]:
    """Returns path -> array of a checkpoint; raises `_Unsound`.

    Args:
      number: of the checkpoint.
      wanted: path -> shape with its sharding, or an array of the host like it.
    """
    found: dict[str, Any] = self._restored(
      number, state=self._ocp.args.StandardRestore(wanted)
    ).state
    return found

  def _restored(self, number: int, **args: Any) -> Any:
    _silence()
    try:
      return self._manager.restore(number, args=self._ocp.args.Composite(**args))
    except Exception as error:  # a damaged file may raise anything
      reason = ' '.join(str(error).split())[:160] or type(error).__name__
      raise _Unsound(f'it cannot be read ({reason})') from error

  def _read(
    self, number: int, like: State, shardings: Any
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (path -> array, what is beside them) of a state like this; raises `_Unsound`."""
    wanted = _flatten(like)
    # Empty arrays are not on the disk.
    empty = {name: np.zeros(x.shape, x.dtype) for name, x in wanted.items() if 0 in x.shape}
    check = self._check(number)
    held = {
      name: jax.ShapeDtypeStruct(x['shape'], x['dtype']) for name, x in check['arrays'].items()
    }
    _check_fits({**empty, **held}, wanted)
    placed: dict[str, Any] = _on_host(check)
    if shardings is not None:
      there = _flatten(_spread(shardings, like))
      placed = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there[name])
        for name, x in wanted.items()
        if name not in empty
      }
      empty = {name: put(x, there[name]) for name, x in empty.items()}
    return {**empty, **self._arrays(number, placed)}, check

  def close(self) -> None:
    """Releases the folder."""
    if '_manager' in vars(self):  # else nothing was opened
      self._manager.close()


def _is_param(name: str) -> bool:
  return name == 'params' or name.startswith('params/')


def _of_tree(name: str) -> str:
  """Returns the path of an array within the parameters; a tree that is one array has 'params'."""
  return name.removeprefix('params/')


def _differing(every: list[dict[str, int]], check: dict[str, Any]) -> Iterator[str]:
  """Yields what to say of each array whose checksum is not that of the shards that were written.

  Args:
    every: path -> checksum of what each process has read.
    check: what is beside the arrays.
  """
  written = {name: x['shards'] for name, x in check['arrays'].items()}
  for name in every[0]:
    whole = checksums.total([[0, said[name]] for said in every])
    if whole != checksums.total(written.get(name, [])):
      yield f'the checksum of {name!r} does not match its contents'


def _on_host(check: dict[str, Any]) -> dict[str, Any]:
  """Returns path -> array of the host like those of a checkpoint; raises `_Unsound`.

  Asked for nothing, Orbax looks for the devices that have written, which may not be here.
  """
  try:
    return {k: np.zeros(x['shape'], jnp.dtype(x['dtype'])) for k, x in check['arrays'].items()}
  except (KeyError, TypeError, ValueError) as error:
    raise _Unsound('it cannot be read (nothing says which arrays it has)') from error


def _writable(x: Any) -> Any:
  """Returns an array that Orbax writes in parts, or one of the host."""
  if not isinstance(x, jax.Array):
    return np.asarray(x)
  # Else Orbax compiles a program for each shape, which cuts copies so that each device writes some.
  return x.addressable_data(0) if x.is_fully_replicated and x.is_fully_addressable else x


def _spread(shardings: Any, like: State) -> Any:
  """Returns the tree of shardings of a state, of which `shardings` is a prefix."""
  return jax.tree.map(lambda one, part: jax.tree.map(lambda _: one, part), shardings, like)


def _flatten(state: State) -> dict[str, Any]:
  """Returns path -> leaf, in the order of the leaves."""
  return dict(_paths(state))


def _paths(state: State) -> Iterator[tuple[str, Any]]:
  for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
    yield jax.tree_util.keystr(path, simple=True, separator='/'), leaf


def _check_fits(flat: dict[str, Any], wanted: dict[str, Any]) -> None:
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
