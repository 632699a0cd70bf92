"""Devices: the mesh of all of them, and the compiler options of each platform."""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fedjax_mem.core import Tree, validate

AXIS = 'clients'


def make_mesh(devices: int | str = 'auto') -> Mesh:
  """Returns the mesh over the axis `clients`.

  Auto axes: with Explicit ones, the default of `jax.make_mesh`, `shard_map` refuses replicated
  inputs.

  Args:
    devices: how many devices to use, or 'auto' for all there are.

  Raises:
    ValueError: not 'auto' and not between 1 and the number of devices.
  """
  there = jax.devices()
  count = len(there)
  if devices != 'auto':
    count = validate.integer(at_most=len(there), devices=devices)
    if count < len(there) and jax.process_count() > 1:
      raise ValueError(
        f'devices must be all {len(there)} of the {jax.process_count()} processes, got {devices}.'
      )
  return Mesh(np.array(there[:count]), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that holds a whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def put(values: Tree, sharding: jax.sharding.Sharding) -> Tree:
  """Returns arrays of the host on the devices; every process gives the same ones.

  `jax.device_put` would send all of them to process 0, to compare them.
  """
  if sharding.is_fully_addressable:
    return jax.device_put(values, sharding)

  def one(x: Any) -> jax.Array:
    held = np.asarray(x)
    return jax.make_array_from_callback(held.shape, sharding, lambda where: held[where])

  return jax.tree.map(one, values)


def fetch(values: Tree) -> Tree:
  """Returns arrays of the devices on the host; every process of several has to take part."""
  if all(getattr(x, 'is_fully_addressable', True) for x in jax.tree.leaves(values)):
    return jax.device_get(values)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(values, tiled=True)


def whole(values: Tree, mesh: Mesh) -> Tree:
  """Returns the values with a whole copy on every device, within a compiled program.

  What is then computed of them is computed on every device alike. Left to itself, the compiler
  might divide sums over the devices, whose last bits would depend on the processes that have them.
  """
  if mesh.size == 1:
    return values
  return jax.lax.with_sharding_constraint(values, replicated(mesh))


@functools.cache
def compiler_options(platform: str) -> dict[str, Any]:
  """Returns the compiler options for a platform, without those that this compiler does not know.

  They are passed with each program, not by `XLA_FLAGS`, where an unknown flag aborts the process.
  """
  # Of LLVM's three levels the first: it compiles in 0.8 of the time, and rounds are as fast.
  cpu = {'xla_cpu_prefer_vector_width': 512, 'xla_backend_optimization_level': 1}
  wanted = {'cpu': cpu}.get(platform, {})
  if not wanted or _known(wanted):
    return wanted
  return {name: value for name, value in wanted.items() if _known({name: value})}


def _known(options: dict[str, Any]) -> bool:
  try:
    jax.jit(lambda x: x, compiler_options=options).lower(1.0).compile()
  except Exception:  # the compiler raises errors of several kinds for an unknown option
    return False
  return True
