"""Scores of a model on the test set: those of the model, and those that layers of the round add.

A layer adds a score by stating the fact `Scores`: its hits over its tries are reported as
'<name>_success'.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from fedjax_mem.config.build import Parts
from fedjax_mem.core import Scores, Tree
from fedjax_mem.engine import evaluator


def names(parts: Parts) -> tuple[str, ...]:
  """Returns the names of the scores, without computing one."""
  test = parts.data.test
  one = {name: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for name, x in test.items()}
  metrics = lambda params, batch: parts.model.metrics(params, parts.data.preprocess(batch))
  own = jax.eval_shape(metrics, parts.params, one)
  return (*own, *(f'{name}_success' for name in _measures(parts)))


def _measures(parts: Parts) -> dict[str, Callable[..., Any]]:
  return {x.name: fact.measure for x, _, fact in parts.layers.having(Scores)}


def measured(parts: Parts) -> Callable[[Tree, dict[str, Any]], dict[str, Any]]:
  """Returns (parameters, batch) -> values [B] of each example, of which `scorer` takes means."""
  measures = _measures(parts)

  def metrics(params: Tree, batch: dict[str, Any]) -> dict[str, Any]:
    batch = parts.data.preprocess(batch)
    values = dict(parts.model.metrics(params, batch))
    for name, measure in measures.items():
      values[f'{name}_success'], values[f'{name}_tries'] = measure(parts.model, params, batch)
    return values

  return metrics


def scorer(parts: Parts, batch_size: int, mesh: Mesh) -> Callable[[Tree], dict[str, float]]:
  """Returns parameters -> scores on the test set, compiled once.

  Args:
    parts: parts of the experiment.
    batch_size: test examples in a batch on a device.
    mesh: the devices.
  """
  measures = _measures(parts)
  metrics = measured(parts)
  evaluate = evaluator(metrics, parts.data.test, batch_size=batch_size, mesh=mesh)

  def scores(params: Tree) -> dict[str, float]:
    values = evaluate(params)
    for name in measures:
      tries = values.pop(f'{name}_tries')
      values[f'{name}_success'] /= tries or 1.0
    return values

  return scores
