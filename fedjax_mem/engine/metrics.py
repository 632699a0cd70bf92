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
  made = {name: _number(metric) for name, metric in metrics.items()}
  for name, metric in made.items():
    check_scalar(name, jnp.shape(plain(metric)))
  return made


def over_cohort(metrics: Metrics, on: jax.Array) -> Metrics:
  """Returns the metrics of the clients that are `on` [C] as scalars; a mean over none is NaN."""
  for name, value in metrics.items():
    for x in jax.tree.leaves(value):
      check_scalar(name, x.shape[1:])
  leaves, structure = jax.tree.flatten({name: _counted(x) for name, x in metrics.items()})
  summed = jax.tree.unflatten(structure, _sums([tree.keep(on, x) for x in leaves]))
  return {name: _number(x) for name, x in summed.items()}


def _counted(metric: Any) -> Any:
  """Returns a metric [C] of clients as what is summed over them: a `Total` or a `Mean`."""
  if isinstance(metric, Covered):
    return Covered(_counted(metric.value))
  if isinstance(metric, Mean | Total):
    return metric
  return Mean(metric.astype(jnp.float32), jnp.ones(metric.shape, jnp.float32))


def _sums(rows: list[jax.Array]) -> list[jax.Array]:
  """Returns the sum of each of the rows [C]."""
  # All rows of a dtype at once: the compiler makes two or three kernels for every sum.
  sums: dict[int, jax.Array] = {}
  for kind in sorted({x.dtype for x in rows}, key=str):
    same = [i for i, x in enumerate(rows) if x.dtype == kind]
    sums |= zip(same, jnp.stack([rows[i] for i in same]).sum(1), strict=True)
  return [sums[i] for i in range(len(rows))]


def _number(metric: Any) -> Any:
  """Returns the number that a metric of scalars stands for."""
  if isinstance(metric, Covered):
    return Covered(_number(metric.value))
  if isinstance(metric, Total):
    return metric.value
  return mean(metric.total, metric.count) if isinstance(metric, Mean) else metric


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
