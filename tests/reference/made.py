"""Small data sets of the shapes of real ones, for configurations whose data is not here."""

import numpy as np

from fedjax_mem.data.preprocess import Inputs, Tokens
from fedjax_mem.data.table import Table

CLIENTS, EXAMPLES, TEST = 60, 4, 8


def _table(name, x, y, classes, shape, preprocess, natural):
  total = CLIENTS * EXAMPLES
  ids = np.repeat(np.arange(CLIENTS, dtype=np.int32), EXAMPLES) if natural else None
  names = tuple(f'client {i}' for i in range(CLIENTS)) if natural else None
  train, test = ({'x': x[part], 'y': y[part]} for part in (slice(total), slice(total, None)))
  return Table(name, train, test, classes, shape, preprocess, ids, names)


def _images(name, shape, classes, natural):
  rng = np.random.default_rng(0)
  number = CLIENTS * EXAMPLES + TEST
  x = rng.integers(0, 256, (number, *shape), np.uint8)
  y = rng.integers(0, classes, number).astype(np.int32)
  return _table(name, x, y, classes, shape, Inputs(shape, 255.0), natural)


def cifar100():
  """500 clients of 100 images, 32 x 32 x 3 of 100 classes."""
  return _images('made_cifar100', (32, 32, 3), 100, True)


def emnist():
  """3,400 clients, 28 x 28 of 62 classes."""
  return _images('made_emnist', (28, 28, 1), 62, True)


def cifar10():
  """60,000 images without clients, 32 x 32 x 3 of 10 classes."""
  return _images('made_cifar10', (32, 32, 3), 10, False)


def shakespeare():
  """715 clients, sequences of 80 characters, 90 of them, 0 for padding."""
  rng = np.random.default_rng(0)
  x = rng.integers(1, 90, (CLIENTS * EXAMPLES + TEST, 81)).astype(np.uint8)
  return _table('made_shakespeare', x[:, :-1], x[:, 1:].astype(np.int32), 90, (80,), Tokens(), True)
