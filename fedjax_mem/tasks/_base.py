"""What a task is."""

import abc
from collections.abc import Mapping
from typing import ClassVar

import jax
import numpy as np

Values = dict[str, jax.Array]


class LearningTask(abc.ABC):
  """A loss and scores for a model's outputs and labels; B examples, T of them in all, K outputs.

  Tasks are frozen dataclasses: equal ones are the same static argument of a compiled program. A
  model computes `values` and `kept` on the device, batch by batch; `scores` runs on the host, in
  float64, for one set of examples or for many (the clients).

  Attributes:
    name: name in configurations and messages.
    main: the score that says how good a model is.
    less: the scores of which less is better; of all others, more is.
  """

  name: ClassVar[str]
  main: ClassVar[str]
  less: ClassVar[tuple[str, ...]] = ('loss',)

  @abc.abstractmethod
  def loss(self, outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the loss [B] float32 of each example, from outputs [B, ..., K] and labels [B, ...].

    Raises:
      ValueError: the shapes do not fit each other.
    """

  def values(self, outputs: jax.Array, y: jax.Array) -> Values:
    """Returns name -> [B] float32: 'loss', and every other score that is a mean over examples."""
    return {'loss': self.loss(outputs, y)}

  def kept(self, outputs: jax.Array, y: jax.Array) -> Values:
    """Returns name -> [B, ...]: what `scores` needs of each example."""
    del outputs, y
    return {}

  def scores(self, kept: Mapping[str, np.ndarray], offsets: np.ndarray) -> dict[str, np.ndarray]:
    """Returns name -> [n] float64: each score that is no mean over examples, of n sets of examples.

    Args:
      kept: name -> [T, ...], as `kept` returns it, one set after another.
      offsets: [n+1], set i is the rows offsets[i] to offsets[i+1], at least one.

    Returns:
      NaN where a score is not defined on a set.
    """
    del kept, offsets
    return {}

  @abc.abstractmethod
  def check(self, part: str, y: np.ndarray, num_outputs: int) -> None:
    """Raises `ValueError` unless labels [T, ...] are of this task.

    Args:
      part: what they are labels of, for messages.
      y: the labels; memory-mapped ones were checked when they were written.
      num_outputs: K.
    """

  def check_outputs(self, num_outputs: int) -> None:
    """Raises `ValueError` unless a model of this task may have K outputs."""
    del num_outputs


def fit(name: str, outputs: jax.Array, shape: tuple[int, ...]) -> None:
  """Raises `ValueError` unless the outputs have a shape."""
  if outputs.shape != shape:
    raise ValueError(
      f'the output of a model for the task {name!r} must be of the shape {shape!r} to fit the '
      f'labels, got {outputs.shape!r}.'
    )


def sizes(offsets: np.ndarray) -> np.ndarray:
  """Returns the number of examples [n] float64 of each set."""
  return np.diff(offsets).astype(np.float64)


def owners(offsets: np.ndarray) -> np.ndarray:
  """Returns the set [T] int64 that each example is in."""
  return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def check_classes(part: str, y: np.ndarray, num_classes: int) -> None:
  """Raises `ValueError` unless labels are int32 in [0, num_classes)."""
  if y.dtype != np.int32:
    raise ValueError(f"{part}['y'] must be int32, got {y.dtype}.")
  if len(y) and not isinstance(y, np.memmap):
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= num_classes:
      raise ValueError(
        f'labels of {part} must be in [0, num_classes = {num_classes}), got {low} to {high}.'
      )


def check_numbers(part: str, y: np.ndarray, num_outputs: int, dtype: str) -> None:
  """Raises `ValueError` unless labels are of a dtype and [T, num_outputs], or [T] of one output."""
  if y.dtype != dtype or y.shape[1:] not in ((num_outputs,), () if num_outputs == 1 else None):
    raise ValueError(
      f"{part}['y'] must be {dtype} [T, {num_outputs}], one value an output, got {y.dtype} "
      f'{y.shape!r}.'
    )
