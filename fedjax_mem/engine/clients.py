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
# (everyone's, what a chunk of clients has) -> (value, what stays per client)
Step = Callable[[Tree, Tree], tuple[Tree, Tree]]


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


def side_by_side(one: OneClient, counts: Callable[[Tree], jax.Array], layout: Layout) -> Step:
  """Returns the step that runs `one` on `layout.chunk` clients side by side, or on one alone.

  Args:
    one: what one client does.
    counts: rows -> their examples, int32.
    layout: how to run them.
  """

  def alone(everyone: Tree, row: Tree) -> tuple[Tree, Tree]:
    return one(everyone, counts(row), row)

  def block(everyone: Tree, rows: Tree) -> tuple[Tree, Tree]:
    longest = counts(rows).max()
    return jax.vmap(lambda row: one(everyone, longest, row))(rows)

  return alone if layout.looped else block


def summing(step: Step) -> Step:
  """Returns the step with its values [k, ...] summed over the clients side by side."""

  def summed(everyone: Tree, rows: Tree) -> tuple[Tree, Tree]:
    value, rest = step(everyone, rows)
    return tree.total(value), rest

  return summed


def spread(
  step: Step, everyone: Tree, rows: Tree, *, chunk: int | None, mesh: Mesh, summed: bool
) -> tuple[Tree, Tree]:
  """Returns (value, rest) of `step` over the cohort, chunk by chunk on every device of the mesh.

  Args:
    step: (everyone, rows of a chunk) -> (value, rest); a value is one sum if `summed`, else
      stacked; rest is stacked.
    everyone: what all clients get.
    rows: what each client gets, [C, ...]; C is a multiple of devices x chunk.
    chunk: clients that a step takes; None: one client, without an axis.
    mesh: the devices.
    summed: whether the values of all steps are summed, or stay stacked [C, ...].
  """

  def on_device(everyone: Tree, rows: Tree) -> tuple[Tree, Tree]:
    if chunk is None:
      return _scan(step, everyone, rows, summed)
    if chunk == jax.tree.leaves(rows)[0].shape[0]:
      return step(everyone, rows)
    parts = jax.tree.map(lambda x: x.reshape((-1, chunk, *x.shape[1:])), rows)
    value, rest = _scan(step, everyone, parts, summed)
    join = lambda x: x.reshape((-1, *x.shape[2:]))
    return (value if summed else jax.tree.map(join, value)), jax.tree.map(join, rest)

  if mesh.size == 1:
    return on_device(everyone, rows)

  def on_mesh(everyone: Tree, rows: Tree) -> tuple[Tree, Tree]:
    value, rest = on_device(everyone, rows)
    return (jax.lax.psum(value, AXIS) if summed else value), rest

  split, whole = PartitionSpec(AXIS), PartitionSpec()
  # check_vma=True would sum gradients with respect to replicated parameters over the devices,
  # silently; we never differentiate through the shard_map itself.
  return jax.shard_map(
    on_mesh,
    mesh=mesh,
    in_specs=(whole, split),
    out_specs=(whole if summed else split, split),
    check_vma=False,
  )(everyone, rows)


def _scan(step: Step, everyone: Tree, rows: Tree, summed: bool) -> tuple[Tree, Tree]:
  """Returns (value, rest) of `step` over the leading axis of rows; a running sum if `summed`."""
  if not summed:
    return jax.lax.map(lambda row: step(everyone, row), rows)
  first = jax.tree.map(lambda x: x[0], rows)
  like = jax.eval_shape(lambda: step(everyone, first)[0])

  def body(total: Tree, row: Tree) -> tuple[Tree, Tree]:
    value, rest = step(everyone, row)
    return tree.add(total, value), rest

  return jax.lax.scan(body, tree.zeros(like), rows)
