"""Metrics of a round: from what the sides of layers return to one number each.

A metric that a side wraps in `Covered` stays wrapped until the round ends: whether a claim of
privacy covers it is its type, not its name.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import Covered, Layer, Mean, Metrics, Total, tree


def named(layer: Layer, metrics: Metrics) -> Metrics:
  """Returns the metrics named 'layer/metric'; a name that has a '/' already stays as it is."""
  return {name if '/' in name else f'{layer.name}/{name}': x for name, x in metrics.items()}


def scalars(metrics: Metrics) -> Metrics:
  """Returns the metrics of a side that runs once in a round, each as one number."""

  def value(metric: Any) -> Any:
    if isinstance(metric, Covered):
      return Covered(value(metric.value))
    if isinstance(metric, Total):
      return metric.value
    return mean(metric.total, metric.count) if isinstance(metric, Mean) else metric

  made = {name: value(metric) for name, metric in metrics.items()}
  for name, metric in made.items():
    check_scalar(name, jnp.shape(plain(metric)))
  return made


def over_cohort(metrics: Metrics, on: jax.Array) -> Metrics:
  """Returns the metrics of the clients that are `on` [C] as scalars; a mean over none is NaN."""

  def reduce(value: Any) -> Any:
    if isinstance(value, Covered):
      return Covered(reduce(value.value))
    if isinstance(value, Total):
      return tree.keep(on, value.value).sum()
    if not isinstance(value, Mean):
      value = Mean(value.astype(jnp.float32), jnp.ones(on.shape, jnp.float32))
    return mean(*(tree.keep(on, x).sum() for x in (value.total, value.count)))

  for name, value in metrics.items():
    for x in jax.tree.leaves(value):
      check_scalar(name, x.shape[1:])
  return {name: reduce(value) for name, value in metrics.items()}


def plain(metric: Any) -> Any:
  """Returns the metric, whether it is `Covered` or not."""
  return metric.value if isinstance(metric, Covered) else metric


def covered(metrics: Metrics) -> frozenset[str]:
  """Returns the names of the metrics that are `Covered`."""
  return frozenset(name for name, x in metrics.items() if isinstance(x, Covered))


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
  """Returns total / count, NaN where the count is 0."""
  return jnp.where(count > 0, total / count, jnp.nan)


def check_scalar(name: str, shape: tuple[int, ...]) -> None:
  """Raises `ValueError` for a metric that is no scalar."""
  if shape:
    raise ValueError(f'metric {name!r} must be a scalar, a Mean or a Total, got shape {shape!r}.')
