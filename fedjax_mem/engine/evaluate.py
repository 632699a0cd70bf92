"""Evaluation of the server's model on held-out examples, batch by batch, on all devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fedjax_mem.core import Batch, Tree, tree, validate
from fedjax_mem.core.examples import in_batches
from fedjax_mem.engine import mesh as meshes

# (params, batch) -> name -> [B], one value an example
MetricsFn = Callable[[Tree, Batch], dict[str, jax.Array]]


def evaluator(
  metrics: MetricsFn, arrays: dict[str, Any], *, batch_size: int, mesh: Mesh
) -> Callable[[Tree], dict[str, float]]:
  """Returns params -> name -> mean over all examples, compiled once.

  Args:
    metrics: (params, batch) -> values [B], one an example.
    arrays: the examples, name -> [T, ...], in their stored dtypes.
    batch_size: examples a device holds at a time; it changes no result beyond rounding.
    mesh: devices among which the batches are split.

  Raises:
    ValueError: no examples, or a batch size that is not >= 1.
  """
  validate.integer(batch_size=batch_size)
  total = len(next(iter(arrays.values())))
  if total == 0:
    raise ValueError('arrays must hold at least one example to evaluate on, got 0.')
  split = jax.sharding.NamedSharding(mesh, PartitionSpec(meshes.AXIS))
  held, mask = jax.device_put(in_batches(arrays, batch_size, mesh.size), split)

  def share(params: Tree, held: Tree, mask: jax.Array) -> Tree:
    def one(carry: Tree, row: tuple[Batch, jax.Array]) -> tuple[Tree, None]:
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
