"""Devices: the mesh of all of them, and the compiler options of each platform.

The mesh has the axis `clients`, over which clients are divided. If parameters are divided, it has a
second one, `model`: the devices of a row of the mesh are a group, which runs the same clients and
has their parameters together (`shards.py`). Only `clients` is manual in a `shard_map`: what a group
computes of divided parameters the compiler divides. Of all else it divides nothing (`undivided`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fedjax_mem.core import Tree, validate
from fedjax_mem.core.groups import AXIS as AXIS
from fedjax_mem.core.groups import MODEL as MODEL


def make_mesh(devices: int | str = 'auto', model: int = 1) -> Mesh:
  """Returns the mesh over the axis `clients`, and over `model` if that is more than one device.

  Auto axes: with Explicit ones, the default of `jax.make_mesh`, `shard_map` refuses replicated
  inputs.

  Args:
    devices: how many devices to use, or 'auto' for all there are.
    model: devices over which parameters are divided: successive ones, a row of the mesh.

  Raises:
    ValueError: not 'auto' and not between 1 and the number of devices, or no multiple of `model`.
  """
  there = jax.devices()
  count = len(there)
  if devices != 'auto':
    count = validate.integer(at_most=len(there), devices=devices)
    if count < len(there) and jax.process_count() > 1:
      raise ValueError(
        f'devices must be all {len(there)} of the {jax.process_count()} processes, got {devices}.'
      )
  if count % model:
    raise ValueError(f'model_devices must be a divisor of the {count} device(s), got {model}.')
  used = np.array(there[:count])
  if model == 1:
    return Mesh(used, (AXIS,), axis_types=(AxisType.Auto,))
  return Mesh(used.reshape(-1, model), (AXIS, MODEL), axis_types=(AxisType.Auto,) * 2)


def groups(mesh: Mesh) -> list[list[jax.Device]]:
  """Returns the devices of each place on the axis `clients`: one, or those that share a model."""
  return [list(row) for row in mesh.devices.reshape(mesh.shape[AXIS], -1)]


def of_model(mesh: Mesh) -> int:
  """Returns over how many devices parameters are divided."""
  return int(mesh.shape.get(MODEL, 1))


def mapped(function: Callable[..., Tree], mesh: Mesh, in_specs: Any, out_specs: Any) -> Any:
  """Returns the function in a `shard_map` over the axis `clients`.

  What it computes of divided parameters the compiler divides over the axis `model`.
  """
  # check_vma=True would silently sum gradients with respect to replicated parameters over the
  # devices. Clients need their own gradients, and the shard_map itself is never differentiated.
  given: dict[str, Any] = {'axis_names': {AXIS}} if of_model(mesh) > 1 else {}
  return jax.shard_map(
    function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False, **given
  )


def undivided(function: Callable[..., Tree]) -> Callable[..., Tree]:
  """Returns a function within `mapped`, computed whole by each device of a group.

  Its arguments are made whole first. The compiler divides nothing in it: a sum has the order, and a
  draw the bits, that it has on one device.
  """

  def same(*given: Tree) -> Tree:
    mesh = jax.sharding.get_abstract_mesh()
    if MODEL not in mesh.axis_names or MODEL in mesh.manual_axes:
      return function(*given)
    whole = PartitionSpec()
    # Without a mesh: the one around it, of which `clients` is manual already.
    return jax.shard_map(
      function, axis_names={MODEL}, in_specs=whole, out_specs=whole, check_vma=False
    )(*given)

  return same


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


def options_for(mesh: Mesh) -> dict[str, Any] | None:
  """Returns the compiler options for programs on a mesh; None: there are none.

  Of the exchanges that the compiler puts in, for parameters that devices share or a rule whose
  coordinates are divided, some do not depend on each other. On a CPU its devices may begin them in
  different orders, and then wait for each other, or take one for another in several processes. By
  the schedule that saves memory operations are begun in one order: without it a transformer on
  2 x 4 devices stood still within twelve rounds, with it not in 28 (nor 4 x 2 in 28).
  """
  platform = mesh.devices.flat[0].platform
  options = compiler_options(platform)
  if platform == 'cpu' and (of_model(mesh) > 1 or jax.process_count() > 1):
    ordered = {'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED'}
    options = {**options, **(ordered if _known_once(tuple(ordered.items())) else {})}
  return options or None


@functools.cache
def _known_once(options: tuple[tuple[str, Any], ...]) -> bool:
  return _known(dict(options))


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
