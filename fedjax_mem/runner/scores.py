"""Scores of a model on the test set: those of the model, and those that layers of the round add.

A layer adds a score by stating the fact `Scores`: its hits over its tries are reported as
'<name>_success'.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_mem.config.parts import Parts
from fedjax_mem.core import Scores, Tree
from fedjax_mem.engine import evaluator
from fedjax_mem.engine.evaluate import FinishFn, MeasureFn
from fedjax_mem.models.base import CHECKED


def names(parts: Parts) -> tuple[str, ...]:
  """Returns the names of the scores, without computing one."""
  return (*model_scores(parts), *(f'{name}_success' for name in _measures(parts)))


def model_scores(parts: Parts) -> tuple[str, ...]:
  """Returns the names of the scores of the model alone: means over examples, then the others."""
  data, task = parts.data, parts.model.task
  # As many as the model was checked with: its layers are traced for them.
  some = {
    name: jax.ShapeDtypeStruct((CHECKED, *x.shape[1:]), x.dtype) for name, x in data.arrays.items()
  }
  own, kept = jax.eval_shape(of_model(parts), parts.like, some)
  if task is None or not kept:
    return tuple(own)
  zeros = {name: np.zeros(x.shape, x.dtype) for name, x in kept.items()}
  return (*own, *task.scores(zeros, np.array([0, CHECKED])))


def _measures(parts: Parts) -> dict[str, Callable[..., Any]]:
  return {x.name: fact.measure for x, _, fact in parts.layers.having(Scores)}


def of_model(parts: Parts) -> MeasureFn:
  """Returns (parameters, batch) -> the model's values [B], and what its further scores need."""
  model, preprocess = parts.model, parts.data.preprocess

  def measure(params: Tree, batch: dict[str, Any]) -> Any:
    batch = preprocess(batch)
    return (
      (model.metrics(params, batch), {}) if model.measure is None else model.measure(params, batch)
    )

  return measure


def finish(parts: Parts) -> FinishFn:
  """Returns what is kept of all examples -> the task's scores that are no means over examples."""
  task = parts.model.task

  def scores(kept: dict[str, np.ndarray]) -> dict[str, float]:
    if task is None or not kept:
      return {}
    whole = np.array([0, len(next(iter(kept.values())))])
    return {name: float(x[0]) for name, x in task.scores(kept, whole).items()}

  return scores


def measured(parts: Parts) -> MeasureFn:
  """Returns `of_model` with the values of layers of the round."""
  own, measures = of_model(parts), _measures(parts)

  def metrics(params: Tree, batch: dict[str, Any]) -> Any:
    values, kept = own(params, batch)
    values = dict(values)
    for name, measure in measures.items():
      found = measure(parts.model, params, parts.data.preprocess(batch))
      values[f'{name}_success'], values[f'{name}_tries'] = found
    return values, kept

  return metrics


def scorer(parts: Parts, batch_size: int, mesh: Mesh) -> Callable[[Tree], dict[str, float]]:
  """Returns parameters -> scores on the test set, compiled once.

  Args:
    parts: parts of the experiment.
    batch_size: test examples in a batch on a device.
    mesh: the devices.
  """
  measures = _measures(parts)
  evaluate = evaluator(
    measured(parts), parts.data.test, batch_size=batch_size, mesh=mesh, finish=finish(parts)
  )

  def scores(params: Tree) -> dict[str, float]:
    values = evaluate(params)
    for name in measures:
      tries = values.pop(f'{name}_tries')
      values[f'{name}_success'] /= tries or 1.0
    return values

  return scores
