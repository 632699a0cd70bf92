"""Reads idx files, plain or gzipped: the format of MNIST and similar data sets.

An idx file is two zero bytes, a type code (8: uint8), the number of dimensions, each dimension as a
big-endian uint32, then the values.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

INSTRUCTIONS = (
  'The files train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and '
  't10k-labels-idx1-ubyte, plain or .gz. On Debian: apt install dataset-fashion-mnist, '
  'which puts them in /usr/share/datasets/fashion-mnist.'
)
_UINT8 = 8


def names(stem: str) -> tuple[str, str]:
  """Returns the names of the files of images and of labels."""
  return f'{stem}-images-idx3-ubyte', f'{stem}-labels-idx1-ubyte'


def find(folder: Path, name: str) -> Path | None:
  """Returns the file `name` or `name`.gz in a folder, or None."""
  return next((p for p in (folder / name, folder / f'{name}.gz') if p.is_file()), None)


def read(path: Path) -> np.ndarray:
  """Returns the array of an idx file of uint8.

  Raises:
    ValueError: the file is truncated, corrupt or no idx file of uint8; the message names it.
  """
  try:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == '.gz' else path.read_bytes()
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise ValueError(f'{path} must be a whole gzip file, got a damaged one ({error}).') from error
  if len(raw) < 4 or raw[:2] != b'\0\0' or raw[2] != _UINT8 or len(raw) < 4 + 4 * raw[3]:
    raise ValueError(f'{path} must be an idx file of uint8, got the first bytes {raw[:4]!r}.')
  shape = tuple(int(n) for n in np.frombuffer(raw, '>u4', raw[3], 4))
  values = len(raw) - 4 - 4 * raw[3]
  if values != math.prod(shape):
    raise ValueError(
      f'{path} must hold {math.prod(shape)} values {shape!r}, got {values}; it is truncated or '
      'half-written: fetch it again.'
    )
  return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def read_pair(folder: Path, stem: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns images [T, H, W] and labels [T], uint8.

  Raises:
    ValueError: a file is missing or damaged, or the files do not belong together.
  """
  arrays = []
  for name, dimensions in zip(names(stem), (3, 1), strict=True):
    path = find(folder, name)
    if path is None:
      raise ValueError(f'{folder} must hold {name} or {name}.gz, got neither.')
    arrays.append(read(path))
    if arrays[-1].ndim != dimensions:
      raise ValueError(f'{path} must have {dimensions} dimensions, got {arrays[-1].ndim}.')
  images, labels = arrays
  if len(images) != len(labels):
    raise ValueError(
      f'{stem} images and labels in {folder} must be as many, got {len(images)} and {len(labels)}.'
    )
  return images, labels
