"""Evaluation of the server's model on held-out examples, batch by batch, on all devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from fedjax_mem.core import tree, validate
from fedjax_mem.engine import mesh as meshes

Tree = Any
# (params, batch) -> name -> [B], one value an example
MetricsFn = Callable[[Tree, dict[str, jax.Array]], dict[str, jax.Array]]


def evaluator(
  metrics: MetricsFn, arrays: dict[str, Any], *, batch_size: int, mesh: Mesh
) -> Callable[[Tree], dict[str, float]]:
  """Returns params -> name -> mean over all examples, compiled once.

  Args:
    metrics: (params, batch) -> values [B], one an example.
    arrays: the examples, name -> [T, ...], as they are stored.
    batch_size: examples a device holds at a time; it changes no result beyond rounding.
    mesh: devices among which the batches are split.

  Raises:
    ValueError: no examples, or a batch size that is not >= 1.
  """
  validate.integer(batch_size=batch_size)
  total = len(next(iter(arrays.values())))
  if total == 0:
    raise ValueError('arrays must hold at least one example to evaluate on, got 0.')
  size = min(batch_size, -(-total // mesh.size))
  batches = -(-total // (size * mesh.size)) * mesh.size

  def cut(x: Any) -> np.ndarray:
    x = np.asarray(x)
    padded = np.concatenate([x, np.broadcast_to(x[:1], (batches * size - total, *x.shape[1:]))])
    return padded.reshape(batches, size, *x.shape[1:])

  split = jax.sharding.NamedSharding(mesh, PartitionSpec(meshes.AXIS))
  held = jax.device_put(jax.tree.map(cut, dict(arrays)), split)
  mask = jax.device_put((np.arange(batches * size) < total).reshape(batches, size), split)

  def share(params: Tree, held: Tree, mask: jax.Array) -> Tree:
    def one(carry: Tree, row: tuple) -> tuple[Tree, None]:
      batch, on = row
      values = metrics(params, batch)
      return tree.add(carry, jax.tree.map(lambda v: jnp.where(on, v, 0).sum(), values)), None

    like = jax.eval_shape(lambda: metrics(params, jax.tree.map(lambda x: x[0], held)))
    zeros = jax.tree.map(lambda x: jnp.zeros((), x.dtype), like)
    return jax.lax.psum(jax.lax.scan(one, zeros, (held, mask))[0], meshes.AXIS)

  spec = PartitionSpec(meshes.AXIS)
  summed = jax.jit(
    jax.shard_map(
      share,
      mesh=mesh,
      in_specs=(PartitionSpec(), spec, spec),
      out_specs=PartitionSpec(),
      check_vma=False,
    ),
    compiler_options=meshes.compiler_options(mesh.devices.flat[0].platform) or None,
  )
  return lambda params: {
    name: float(x) / total for name, x in jax.device_get(summed(params, held, mask)).items()
  }
