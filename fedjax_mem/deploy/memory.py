"""What a client keeps of a run on its own disk: its states, and how far it has answered.

A client's states (the residual of error feedback, …) are its own data: nobody else gets them. A
server that starts again from a checkpoint says after which round the states count, so the states of
the last two rounds answered are kept.
"""

import contextlib
import json
import os
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import filelock
import jax
import numpy as np

from fedjax_mem.core import Tree
from fedjax_mem.deploy.engine import write_json

NEVER = -1


class Memory:
  """One client's files of one run.

  Attributes:
    answered: last round that was answered, from 0; `NEVER`: none.
    times: number of rounds answered.
  """

  def __init__(self, folder: pathlib.Path, run: str):
    """Opens the folder, which only its owner can read.

    Args:
      folder: of all runs.
      run: id of the run.
    """
    if not run.isalnum():
      raise ValueError(f'run must be an id of letters and digits, got {run!r}.')
    self._folder = folder / run
    self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    self._mark = self._folder / 'answered.json'
    self._lock = filelock.FileLock(self._folder / 'lock')
    self.answered, self.times = NEVER, 0
    self._look()

  def _look(self) -> None:
    if self._mark.exists():
      self.answered, self.times = json.loads(self._mark.read_text())

  @contextlib.contextmanager
  def held(self) -> Iterator[None]:
    """Holds the mark, as it is on the disk: a server may have several jobs of a run at once."""
    with self._lock:
      self._look()
      yield

  def note(self, round: int) -> None:
    """Notes, on the disk before it returns, that one more round is answered."""
    write_json(self._mark, [round, self.times + 1])
    self.answered, self.times = round, self.times + 1

  def save(self, round: int, rows: Tree, last: int) -> None:
    """Keeps the states after a round, and removes all but those and the ones before.

    Args:
      round: from 0.
      rows: the states; nothing is written where there are none.
      last: round after which the states counted with which this one began.
    """
    leaves = jax.tree.leaves(rows)
    if not leaves:
      return
    beside = self._folder / 'states.tmp'
    with beside.open('wb') as file:
      np.savez(file, *map(np.asarray, leaves))
      file.flush()
      os.fsync(file.fileno())
    os.replace(beside, self._file(round))
    for path in self._folder.glob('*.npz'):
      if path not in (self._file(round), self._file(last)):
        path.unlink()

  def load(self, round: int, like: Tree) -> Any:
    """Returns the states after a round; None if they are not here, whole.

    Args:
      round: from 0.
      like: shapes of the states.
    """
    leaves, structure = jax.tree.flatten(like)
    path = self._file(round)
    if not path.exists():
      return None
    try:
      with np.load(path, allow_pickle=False) as file:
        read = [file[f'arr_{i}'] for i in range(len(leaves))]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
      return None
    if [(x.shape, x.dtype) for x in read] != [(x.shape, x.dtype) for x in leaves]:
      return None
    return jax.tree.unflatten(structure, read)

  def _file(self, round: int) -> pathlib.Path:
    return self._folder / f'{round}.npz'
