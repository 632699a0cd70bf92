"""From one client to the cohort: a loop, a vmap, chunks of clients, on one device or on a mesh.

However it is run, a client sees no axis, and a linear round holds O(chunk x D), not O(C x D).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec

from fedjax_mem.core import tree
from fedjax_mem.engine.mesh import AXIS

Tree = Any
# (everyone's, the largest count side by side, one client's) -> (value, what stays per client)
OneClient = Callable[[Tree, jax.Array, Tree], tuple[Tree, Tree]]


class Layout(NamedTuple):
  """How a cohort is laid out.

  Attributes:
    chunk: clients side by side on a device, >= 1.
    looped: one client at a time, without vmap (then chunk is 1).
    mesh: the devices.
  """

  chunk: int
  looped: bool
  mesh: Mesh

  @property
  def devices(self) -> int:
    """Number of devices in the mesh."""
    return self.mesh.size

  @property
  def block(self) -> int:
    """Clients that run at once on all devices: a cohort is padded to a multiple of it."""
    return self.chunk * self.devices


def spread(
  one: OneClient,
  everyone: Tree,
  rows: Tree,
  counts: Callable[[Tree], jax.Array],
  layout: Layout,
  summed: bool,
) -> tuple[Tree, Tree]:
  """Returns (value, rest) of `one` over the cohort: value summed or stacked [C, ...], rest stacked.

  Args:
    one: what one client does.
    everyone: what all clients get.
    rows: what each client gets, [C, ...].
    counts: rows -> [C] int32, the clients' examples.
    layout: how to run them.
    summed: whether to sum the values over the cohort, chunk by chunk.
  """

  def block(everyone: Tree, rows: Tree) -> tuple[Tree, Tree]:
    longest = counts(rows).max()
    value, rest = jax.vmap(lambda row: one(everyone, longest, row))(rows)
    return (tree.total(value) if summed else value), rest

  def alone(everyone: Tree, row: Tree) -> tuple[Tree, Tree]:
    return one(everyone, counts(row), row)

  def on_device(everyone: Tree, rows: Tree) -> tuple[Tree, Tree]:
    size = counts(rows).shape[0]
    if layout.looped:
      return _scan(alone, everyone, rows, summed)
    if layout.chunk == size:
      return block(everyone, rows)
    parts = jax.tree.map(lambda x: x.reshape((-1, layout.chunk, *x.shape[1:])), rows)
    value, rest = _scan(block, everyone, parts, summed)
    join = lambda x: x.reshape((-1, *x.shape[2:]))
    return (value if summed else jax.tree.map(join, value)), jax.tree.map(join, rest)

  if layout.devices == 1:
    return on_device(everyone, rows)

  def on_mesh(everyone: Tree, rows: Tree) -> tuple[Tree, Tree]:
    value, rest = on_device(everyone, rows)
    return (jax.lax.psum(value, AXIS) if summed else value), rest

  split, whole = PartitionSpec(AXIS), PartitionSpec()
  # check_vma=True would sum gradients with respect to replicated parameters over the devices,
  # silently; we never differentiate through the shard_map itself.
  return jax.shard_map(
    on_mesh,
    mesh=layout.mesh,
    in_specs=(whole, split),
    out_specs=(whole if summed else split, split),
    check_vma=False,
  )(everyone, rows)


def _scan(step: Callable, everyone: Tree, rows: Tree, summed: bool) -> tuple[Tree, Tree]:
  """Returns (value, rest) of `step` over the leading axis of rows; a running sum if `summed`."""
  if not summed:
    return jax.lax.map(lambda row: step(everyone, row), rows)
  first = jax.tree.map(lambda x: x[0], rows)
  like = jax.eval_shape(lambda: step(everyone, first)[0])

  def body(total: Tree, row: Tree) -> tuple[Tree, Tree]:
    value, rest = step(everyone, row)
    return tree.add(total, value), rest

  return jax.lax.scan(body, tree.zeros(like), rows)
