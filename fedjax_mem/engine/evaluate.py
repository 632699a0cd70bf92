"""Evaluation of the server's model on held-out examples, batch by batch, on all devices.

`evaluator` gives means over all examples, which stay on the devices; `per_example` gives values
for each example, and sends them to the devices in parts.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from fedjax_mem.core import Batch, Tree, tree, validate
from fedjax_mem.core.examples import in_batches
from fedjax_mem.engine import mesh as meshes
from fedjax_mem.kernels.loops import across

# (params, batch) -> name -> [B], one value an example
MetricsFn = Callable[[Tree, Batch], dict[str, jax.Array]]
# (params, batch) -> values as above, and name -> [B, ...], what further scores need of an example
MeasureFn = Callable[[Tree, Batch], tuple[dict[str, jax.Array], dict[str, jax.Array]]]
# name -> [T, ...] of all examples, on the host -> further scores
FinishFn = Callable[[dict[str, np.ndarray]], dict[str, float]]
_PART = 8192  # examples on the devices at a time, about


def evaluator(
  metrics: MetricsFn | MeasureFn,
  arrays: dict[str, Any],
  *,
  batch_size: int,
  mesh: Mesh,
  finish: FinishFn | None = None,
) -> Callable[[Tree], dict[str, float]]:
  """Returns params -> name -> mean over all examples, and further scores; compiled once.

  Args:
    metrics: (params, batch) -> values [B], one an example; with `finish` a pair, of these and of
      what further scores need of each example, [B, ...].
    arrays: the examples, name -> [T, ...], in their stored dtypes.
    batch_size: examples a device holds at a time; it changes no result beyond rounding.
    mesh: devices among which the batches are split.
    finish: what is kept of all T examples, in their order -> further scores.

  Raises:
    ValueError: no examples, or a batch size that is not >= 1.
  """
  validate.integer(batch_size=batch_size)
  total = len(next(iter(arrays.values())))
  if total == 0:
    raise ValueError('arrays must hold at least one example to evaluate on, got 0.')
  split = jax.sharding.NamedSharding(mesh, PartitionSpec(meshes.AXIS))
  held, mask = meshes.put(in_batches(arrays, batch_size, mesh.shape[meshes.AXIS]), split)
  program = _summed(metrics if finish else lambda params, batch: (metrics(params, batch), {}), mesh)

  def evaluate(params: Tree) -> dict[str, float]:
    summed, kept = meshes.fetch(program(params, held, mask))
    scores = {name: float(x) / total for name, x in summed.items()}
    if finish is not None:
      # Padding is at the end.
      scores |= finish({k: x.reshape(-1, *x.shape[2:])[:total] for k, x in kept.items()})
    return scores

  return evaluate


def _summed(measure: Callable[[Tree, Batch], Any], mesh: Mesh) -> Callable[..., Any]:
  """Returns (params, batches, mask) -> (sums of the values, what is kept), compiled."""

  def share(params: Tree, held: Tree, mask: jax.Array) -> tuple[Tree, Tree]:
    def one(carry: Tree, row: tuple[Batch, jax.Array]) -> tuple[Tree, Tree]:
      batch, on = row
      values, kept = measure(params, batch)
      return tree.add(carry, jax.tree.map(lambda v: jnp.where(on, v, 0).sum(), values)), kept

    like, _ = jax.eval_shape(lambda: measure(params, jax.tree.map(lambda x: x[0], held)))
    zeros = jax.tree.map(lambda x: jnp.zeros((), x.dtype), like)
    summed, kept = jax.lax.scan(one, zeros, (held, mask))
    return meshes.undivided(lambda x: across.total(x, meshes.AXIS))(summed), kept

  spec = PartitionSpec(meshes.AXIS)
  return jax.jit(
    meshes.mapped(share, mesh, (PartitionSpec(), spec, spec), (PartitionSpec(), spec)),
    compiler_options=meshes.options_for(mesh),
  )


def per_example(
  metrics: Callable[..., Any],
  arrays: dict[str, Any],
  rows: np.ndarray,
  *,
  batch_size: int,
  mesh: Mesh,
  offsets: np.ndarray | None = None,
) -> Callable[[Tree], Any]:
  """Returns params -> the values of the examples at `rows`, by one compiled program.

  The program takes part of the examples, so that memory does not grow with their number, and the
  arrays may be memory-mapped. Batches are the same on any number of devices.

  Args:
    metrics: (params, batch) -> a tree of arrays [B, ...]; the result is one of [H, ...]. With
      `offsets` (params, batch, group).
    arrays: the examples, name -> [T, ...], on the host, in their stored dtypes.
    rows: [H] integers, which of them.
    batch_size: examples in a batch on a device.
    mesh: devices among which the batches are split.
    offsets: [G+1], group g has the rows offsets[g]:offsets[g+1], and no batch is of two; None: all
      are one group.

  Raises:
    ValueError: no examples, or a batch size that is not >= 1.
  """
  validate.integer(batch_size=batch_size)
  total = len(rows)
  if not total:
    raise ValueError('rows must be at least one example to evaluate on, got none.')
  places, real, group = _batches(np.array([0, total]) if offsets is None else offsets, batch_size)
  # As few parts as can be, of one length: the last is not mostly padding.
  parts, devices = -(-places.size // max(_PART, places.shape[1])), mesh.shape[meshes.AXIS]
  count = -(-len(places) // (parts * devices)) * devices  # batches of a part
  split = jax.sharding.NamedSharding(mesh, PartitionSpec(meshes.AXIS))

  program = _mapped(metrics, mesh, offsets is not None)

  def part(params: Tree, begin: int) -> Tree:
    # Padding repeats the last batch.
    chosen = np.minimum(np.arange(begin, begin + count), len(places) - 1)
    held = {name: np.take(x, rows[places[chosen]], axis=0) for name, x in arrays.items()}
    values = meshes.fetch(program(params, *meshes.put((held, group[chosen]), split)))
    kept = real[chosen] & (np.arange(begin, begin + count) < len(places))[:, None]
    return jax.tree.map(lambda x: x[kept], values)

  def evaluate(params: Tree) -> Tree:
    found = [part(params, begin) for begin in range(0, len(places), count)]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

  return evaluate


def _mapped(metrics: Callable[..., Any], mesh: Mesh, grouped: bool) -> Callable[..., Any]:
  """Returns (params, batches, groups) -> the values of each example, compiled."""

  def share(params: Tree, held: Tree, group: jax.Array) -> Tree:
    def one(x: tuple[Batch, jax.Array]) -> Tree:
      return metrics(params, *x) if grouped else metrics(params, x[0])

    return jax.lax.map(one, (held, group))

  spec = PartitionSpec(meshes.AXIS)
  return jax.jit(
    meshes.mapped(share, mesh, (PartitionSpec(), spec, spec), spec),
    compiler_options=meshes.options_for(mesh),
  )


def _batches(offsets: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns batches of one group each: places [K, B], which are no padding [K, B], groups [K].

  Padding repeats the last place of its batch.
  """
  counts = np.diff(offsets)
  size = min(batch_size, int(counts.max()))
  each = -(-counts // size)
  group = np.repeat(np.arange(len(counts), dtype=np.int32), each)
  number = np.arange(len(group)) - np.repeat(np.cumsum(each) - each, each)
  places = (offsets[:-1][group] + number * size)[:, None] + np.arange(size)
  ends = offsets[1:][group][:, None]
  return np.minimum(places, ends - 1), places < ends, group
