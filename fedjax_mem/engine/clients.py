"""From one client to the cohort: a loop, a vmap, chunks of clients, on one device or on a mesh.

However it is run, a client sees no axis, and a linear round holds O(chunk x D), not O(C x D).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec

from fedjax_mem.core import Tree, tree
from fedjax_mem.engine.mesh import AXIS

# (everyone's, the largest count side by side, one client's) -> (value, what stays per client)
OneClient = Callable[[Tree, jax.Array, Tree], tuple[Tree, Tree]]
# (everyone's, what a chunk of clients has) -> (value, what stays per client)
Block = Callable[[Tree, Tree], tuple[Tree, Tree]]
# (everyone's, what the device hands from step to step, what a chunk of clients has) -> (value, what
# is handed on, what stays per client)
Step = Callable[[Tree, Tree, Tree], tuple[Tree, Tree, Tree]]


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


def side_by_side(one: OneClient, counts: Callable[[Tree], jax.Array], layout: Layout) -> Block:
  """Returns what runs `one` on `layout.chunk` clients side by side, or on one alone.

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


def summing(block: Block) -> Block:
  """Returns the block with its values [k, ...] summed over the clients side by side."""

  def summed(everyone: Tree, rows: Tree) -> tuple[Tree, Tree]:
    value, rest = block(everyone, rows)
    return tree.total(value), rest

  return summed


def spread(
  step: Step,
  everyone: Tree,
  carry: Tree,
  rows: Tree,
  *,
  chunk: int | None,
  mesh: Mesh,
  summed: bool,
) -> tuple[Tree, Tree, Tree]:
  """Returns (value, carry, rest) of `step` over the cohort, chunk by chunk on every device.

  Args:
    step: (everyone, carry, rows of a chunk) -> (value, carry, rest); a value is one sum if
      `summed`, else stacked; rest is stacked.
    everyone: what all clients get.
    carry: what a device hands from one step to the next; its leading axis is cut into the devices.
    rows: what each client gets, [C, ...]; C is a multiple of devices x chunk.
    chunk: clients that a step takes; None: one client, without an axis.
    mesh: the devices.
    summed: whether the values of all steps are summed, or stay stacked [C, ...].
  """

  def on_device(everyone: Tree, carry: Tree, rows: Tree) -> tuple[Tree, Tree, Tree]:
    if chunk is None:
      return _scan(step, everyone, carry, rows, summed)
    if chunk == jax.tree.leaves(rows)[0].shape[0]:
      return step(everyone, carry, rows)
    parts = jax.tree.map(lambda x: x.reshape((-1, chunk, *x.shape[1:])), rows)
    value, carry, rest = _scan(step, everyone, carry, parts, summed)
    join = lambda x: x.reshape((-1, *x.shape[2:]))
    return (value if summed else jax.tree.map(join, value)), carry, jax.tree.map(join, rest)

  if mesh.size == 1:
    return on_device(everyone, carry, rows)

  def on_mesh(everyone: Tree, carry: Tree, rows: Tree) -> tuple[Tree, Tree, Tree]:
    value, carry, rest = on_device(everyone, carry, rows)
    return (jax.lax.psum(value, AXIS) if summed else value), carry, rest

  split, whole = PartitionSpec(AXIS), PartitionSpec()
  # check_vma=True would sum gradients with respect to replicated parameters over the devices,
  # silently; we never differentiate through the shard_map itself.
  return jax.shard_map(
    on_mesh,
    mesh=mesh,
    in_specs=(whole, split, split),
    out_specs=(whole if summed else split, split, split),
    check_vma=False,
  )(everyone, carry, rows)


def _scan(
  step: Step, everyone: Tree, carry: Tree, rows: Tree, summed: bool
) -> tuple[Tree, Tree, Tree]:
  """Returns (value, carry, rest) of `step` over the leading axis of rows; a sum if `summed`."""
  first = jax.tree.map(lambda x: x[0], rows)
  like = jax.eval_shape(lambda: step(everyone, carry, first)[0])

  def body(state: tuple[Tree, Tree], row: Tree) -> tuple[tuple[Tree, Tree], Tree]:
    total, carry = state
    value, carry, rest = step(everyone, carry, row)
    if summed:
      return (tree.add(total, value), carry), rest
    return (total, carry), (value, rest)

  start = tree.zeros(like) if summed else ()
  (total, carry), rest = jax.lax.scan(body, (start, carry), rows)
  value, rest = (total, rest) if summed else rest
  return value, carry, rest
