"""Preprocessing: jittable functions batch -> batch, from stored arrays to a model's inputs.

Each is a frozen dataclass. Equal ones are the same static argument of a compiled round, so that
loading a data set twice compiles once. They use only array methods, and so work on NumPy and on
traced arrays.
"""

import dataclasses
import math
from typing import Any

import numpy as np

Batch = dict[str, Any]  # of NumPy arrays as well as traced ones, unlike `core.Batch`


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Casts inputs to float32 and gives them a shape.

  Attributes:
    shape: shape of one input, without the batch axis.
    divisor: divisor of the inputs (255 for images in uint8); 1 leaves them as they are.
  """

  shape: tuple[int, ...]
  divisor: float = 1.0

  def __call__(self, batch: Batch) -> Batch:
    """Returns the batch with 'x' as float32 [B, *shape]."""
    x = batch['x'].astype(np.float32)
    if self.divisor != 1:
      x = x / np.float32(self.divisor)
    return {**batch, 'x': x.reshape(x.shape[0], *self.shape)}


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Casts sequences of token ids, stored in a small unsigned dtype, to int32."""

  def __call__(self, batch: Batch) -> Batch:
    """Returns the batch with 'x' and 'y' as int32 [B, T]."""
    return {**batch, 'x': batch['x'].astype(np.int32), 'y': batch['y'].astype(np.int32)}


def default_for(x: np.ndarray) -> Inputs:
  """Returns the default for arrays [T, ...]: uint8 is divided by 255, images get a channel axis."""
  shape = x.shape[1:]
  if x.dtype == np.uint8 and len(shape) == 2:
    shape = (*shape, 1)
  return Inputs(tuple(int(n) for n in shape), 255.0 if x.dtype == np.uint8 else 1.0)


def image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the shape [H, W, C] of a stored image [H, W] or [H, W, C]."""
  return (*shape, 1) if len(shape) == 2 else shape


def row_bytes(arrays: dict[str, np.ndarray]) -> int:
  """Returns the bytes of one example in all arrays."""
  return sum(math.prod(x.shape[1:]) * x.dtype.itemsize for x in arrays.values())
