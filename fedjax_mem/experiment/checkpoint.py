"""Checkpoints: the whole state between two rounds, atomic, checked when they are read.

Orbax writes each into a temporary folder and renames it, so a process killed at any moment leaves
either a whole checkpoint or none. What it writes is a flat table of arrays and a checksum of their
bytes: a file that was cut short, or replaced, is refused and the one before it is used.
"""

import logging
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from fedjax_mem.core import State

Tree = Any


class CheckpointError(RuntimeError):
  """A checkpoint cannot be written, or none can be read."""


class Checkpoints:
  """The checkpoints of one run, by the number of rounds done."""

  def __init__(self, folder: str | pathlib.Path, keep: int = 3):
    """Opens the folder, which is made if there is none.

    Args:
      folder: of the checkpoints.
      keep: newest checkpoints that are kept.

    Raises:
      CheckpointError: the folder cannot be written.
    """
    import orbax.checkpoint as ocp  # imported where it is used: it takes a while

    logging.getLogger('absl').setLevel(logging.ERROR)
    self._ocp = ocp
    self.folder = pathlib.Path(folder).absolute()
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
    try:
      self._manager = ocp.CheckpointManager(self.folder, options=options)
    except OSError as error:
      raise CheckpointError(f'checkpoints cannot be kept in {self.folder}: {error}') from error

  def save(self, state: State) -> int:
    """Writes the state and returns its number, the rounds done; one that is there is left alone.

    Raises:
      CheckpointError: it cannot be written (a full disk, a folder without permission).
    """
    flat = {name: np.asarray(x) for name, x in _flatten(jax.device_get(state)).items()}
    number = int(flat['round'])
    if number in self._manager.all_steps():
      return number
    args = self._ocp.args
    try:
      self._manager.save(
        number,
        args=args.Composite(
          # Orbax refuses arrays without values; they are made anew from their shapes.
          state=args.StandardSave({name: x for name, x in flat.items() if x.size}),
          check=args.JsonSave({'crc32': _checksum(flat)}),
        ),
      )
      self._manager.wait_until_finished()
    except Exception as error:  # Orbax lets errors of several libraries through
      raise CheckpointError(
        f'the checkpoint of round {number} cannot be written: {error}'
      ) from error
    return number

  def numbers(self) -> list[int]:
    """Returns the numbers of the checkpoints there are, newest first."""
    return sorted(self._manager.all_steps(), reverse=True)

  def restore(self, like: State) -> tuple[State, list[str]]:
    """Returns the newest checkpoint that is sound, and a line about each that was refused.

    Args:
      like: shapes and dtypes of the state.

    Raises:
      CheckpointError: there is none, or none is sound.
    """
    refused: list[str] = []
    for number in self.numbers():
      try:
        return self._read(number, like), refused
      except Exception as error:  # a damaged file may raise anything
        reason = str(error).strip().split('\n')[0][:200]
        refused.append(f'checkpoint {number} in {self.folder} is refused: {reason}')
    found = '; '.join(refused) or 'there is none'
    raise CheckpointError(f'no sound checkpoint in {self.folder}: {found}.')

  def _read(self, number: int, like: State) -> State:
    args = self._ocp.args
    wanted = _flatten(like)
    target = {
      name: np.zeros(x.shape, x.dtype) for name, x in wanted.items() if int(np.prod(x.shape))
    }
    read = self._manager.restore(
      number, args=args.Composite(state=args.StandardRestore(target), check=args.JsonRestore())
    )
    flat = {name: np.zeros(x.shape, x.dtype) for name, x in wanted.items()}
    flat |= {name: np.asarray(x) for name, x in read.state.items()}
    for name, x in wanted.items():
      if (flat[name].shape, flat[name].dtype) != (x.shape, x.dtype):
        raise ValueError(
          f'{name} must be {x.dtype}{x.shape}, got {flat[name].dtype}{flat[name].shape}.'
        )
    if _checksum(flat) != read.check['crc32']:
      raise ValueError('its checksum does not match its contents.')
    leaves, structure = jax.tree_util.tree_flatten(like)
    if len(leaves) != len(flat):
      raise ValueError(f'it must hold {len(leaves)} arrays, got {len(flat)}.')
    return jax.tree_util.tree_unflatten(structure, [flat[name] for name in wanted])

  def close(self) -> None:
    """Releases the folder."""
    self._manager.close()


def _flatten(state: State) -> dict[str, Any]:
  """Returns path -> leaf, in the order of the leaves."""
  return dict(_paths(state))


def _paths(state: State) -> Iterator[tuple[str, Any]]:
  for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
    yield jax.tree_util.keystr(path, simple=True, separator='/'), leaf


def _checksum(flat: dict[str, np.ndarray]) -> int:
  crc = 0
  for name in sorted(flat):
    x = flat[name]
    crc = zlib.crc32(f'{name}{x.dtype}{x.shape}'.encode(), crc)
    crc = zlib.crc32(np.ascontiguousarray(x).tobytes(), crc)
  return crc
