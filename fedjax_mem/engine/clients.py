"""From one client to the cohort: a loop, a vmap, chunks of clients, on one device or on a mesh.

What runs is built in three layers. `OneClient` is the work of one client, without a client axis.
`side_by_side` makes a `Block` of it: the work of one chunk, by vmap or for one client as it is.
`round.py` adds the reading and writing of states, which gives a `Step`; `spread` runs steps over
the whole cohort, one after another on every device. Where the result is a sum, it is summed step by
step, so that a round holds O(chunk x D) values and not O(C x D). `Adding` says how.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec

from fedjax_mem.core import Tree, groups, tree
from fedjax_mem.engine import mesh as meshes
from fedjax_mem.engine.mesh import AXIS, undivided
from fedjax_mem.kernels.loops import across, sums

# In all three, `everyone` is what all clients get, and `row` or `rows` what each client gets. A
# `value` may be summed over clients; `rest` is kept for each of them.

# (everyone, most examples of a client in the chunk, row) -> (value, rest)
OneClient = Callable[[Tree, jax.Array, Tree], tuple[Tree, Tree]]
# (everyone, rows of a chunk) -> (value, rest)
Block = Callable[[Tree, Tree], tuple[Tree, Tree]]
# (everyone, carry of the device, rows of a chunk) -> (value, carry, rest)
Step = Callable[[Tree, Tree, Tree], tuple[Tree, Tree, Tree]]


class Adding(NamedTuple):
  """How values are summed: step by step, then over the devices.

  Attributes:
    stacked: values [k, ...] side by side -> their sum.
    zeros: the shapes of what a step returns -> the sum of no steps.
    add: (sum so far, what a step returns) -> sum.
    across: the sums of the devices, within a `shard_map` -> their sum.
    done: what `add` or `across` returned -> the value.
  """

  stacked: Callable[[Tree], Tree]
  zeros: Callable[[Tree], Tree]
  add: Callable[[Tree, Tree], Tree]
  across: Callable[[Tree], Tree]
  done: Callable[[Tree], Tree]


PLAIN = Adding(
  undivided(tree.total),
  tree.zeros,
  undivided(tree.add),
  undivided(lambda x: across.total(x, AXIS)),
  lambda x: x,
)


def compensated(looped: bool) -> Adding:
  """Returns sums whose rounding is bounded (`kernels/loops/sums.py`), for noise to cover it.

  Args:
    looped: whether a step returns the message of one client, and not a sum of several.
  """
  empty = sums.zeros if looped else lambda part: sums.zeros(part.high)
  add = sums.add if looped else sums.join
  over = undivided(lambda part: sums.over_devices(part, AXIS))
  return Adding(undivided(sums.total), empty, undivided(add), over, lambda whole: whole.high)


class Layout(NamedTuple):
  """How a cohort is laid out.

  Attributes:
    chunk: clients side by side on a device, >= 1.
    looped: one client at a time, without vmap (then chunk is 1).
    mesh: the devices.
    slack: places of a device beyond its share of the cohort.
    rules: by which parameters are divided over the axis `model`; (): they are not.
    specs: how each parameter is divided by them, a tree; None: it is not.
  """

  chunk: int
  looped: bool
  mesh: Mesh
  slack: int = 0
  rules: tuple[Any, ...] = ()
  specs: Any = None

  @property
  def devices(self) -> int:
    """Number of devices, or of groups that share a model, over which clients are divided."""
    return int(self.mesh.shape[AXIS])

  @property
  def block(self) -> int:
    """Clients that run at once on all devices: a cohort is padded to a multiple of it."""
    return self.chunk * self.devices

  def places(self, cohort: int) -> int:
    """Returns the places of all devices for a cohort of so many clients."""
    each = -(-cohort // self.devices) + self.slack
    return self.devices * (each + -each % self.chunk)


def side_by_side(one: OneClient, counts: Callable[[Tree], jax.Array], layout: Layout) -> Block:
  """Returns `one` for `layout.chunk` clients side by side, or, if looped, for a single client.

  Args:
    one: what one client does.
    counts: rows -> their numbers of examples, int32.
    layout: how to run them.
  """

  def single(everyone: Tree, row: Tree) -> tuple[Tree, Tree]:
    return one(everyone, groups.in_step(counts(row)), row)

  def block(everyone: Tree, rows: Tree) -> tuple[Tree, Tree]:
    # The same for all clients of the chunk, so that under vmap their loops over examples have one
    # trip count.
    longest = groups.in_step(counts(rows).max())
    return jax.vmap(lambda row: one(everyone, longest, row))(rows)

  return single if layout.looped else block


def summing(block: Block, adding: Adding = PLAIN) -> Block:
  """Returns the block with its values [k, ...] summed over the clients side by side."""

  def summed(everyone: Tree, rows: Tree) -> tuple[Tree, Tree]:
    value, rest = block(everyone, rows)
    return adding.stacked(value), rest

  return summed


def spread(
  step: Step,
  everyone: Tree,
  carry: Tree,
  rows: Tree,
  *,
  chunk: int | None,
  mesh: Mesh,
  summed: Adding | None,
  specs: Tree = None,
) -> tuple[Tree, Tree, Tree]:
  """Returns (value, carry, rest) of `step` over the cohort, chunk by chunk on every device.

  Of the rest, a pair, the first half stays where it was made; the second half comes whole to every
  device.

  Args:
    step: (everyone, carry, rows of a chunk) -> (value, carry, rest). The value is a sum over the
      chunk if `summed`, else stacked; rest is always stacked.
    everyone: what all clients get.
    carry: what a device hands from one step to the next; its leading axis is split over the
      devices.
    rows: what each client gets, [C, ...]; C is a multiple of devices x chunk.
    chunk: clients that a step takes; None: one client, without a client axis.
    mesh: the devices.
    summed: how the values of all steps are summed; None: they stay stacked [C, ...].
    specs: how `everyone` lies on the mesh, a prefix of its tree; None: whole on every device.
  """

  def on_device(everyone: Tree, carry: Tree, rows: Tree) -> tuple[Tree, Tree, Tree]:
    if chunk is None:
      return _scan(step, everyone, carry, rows, summed)
    if chunk == jax.tree.leaves(rows)[0].shape[0]:  # a single step needs no loop
      return step(everyone, carry, rows)
    parts = jax.tree.map(lambda x: x.reshape((-1, chunk, *x.shape[1:])), rows)
    value, carry, rest = _scan(step, everyone, carry, parts, summed)
    join = lambda x: x.reshape((-1, *x.shape[2:]))
    return (value if summed else jax.tree.map(join, value)), carry, jax.tree.map(join, rest)

  done = summed.done if summed else lambda value: value
  if mesh.size == 1:
    value, carry, rest = on_device(everyone, carry, rows)
    return done(value), carry, rest

  def on_mesh(everyone: Tree, carry: Tree, rows: Tree) -> tuple[Tree, Tree, Tree]:
    value, carry, (made, told) = on_device(everyone, carry, rows)
    if summed and mesh.shape[AXIS] > 1:
      value = summed.across(value)
    value = done(value)
    # Here, since outside of the `shard_map` the compiler would send each array when it likes.
    gather = undivided(lambda told, before: across.gathered(told, AXIS, before))
    return value, carry, (made, gather(told, value))

  split, whole = PartitionSpec(AXIS), PartitionSpec()
  run: Step = meshes.mapped(
    on_mesh,
    mesh,
    (whole if specs is None else specs, split, split),
    (whole if summed else split, split, (split, whole)),
  )
  return run(everyone, carry, rows)


def everywhere(function: Callable[..., Tree], mesh: Mesh) -> Callable[..., Tree]:
  """Returns the function, computed whole on every device of the mesh.

  Outside of a `shard_map` the compiler may divide what is computed of divided arrays, and sums over
  devices then come in an order of its own. Within one it also shares its traces with `spread`.
  """
  if mesh.size == 1:
    return function
  whole = PartitionSpec()
  mapped: Callable[..., Tree] = jax.shard_map(
    function, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False
  )
  return mapped


def gathered(stack: Tree, before: Tree, mesh: Mesh) -> Tree:
  """Returns the messages [C, ...], of which each device has some, whole on every device.

  By one message, sent after the one that brought `before`.
  """
  if mesh.size == 1:
    return stack
  split, whole = PartitionSpec(AXIS), PartitionSpec()
  gather = undivided(lambda stack, before: across.gathered(stack, AXIS, before))
  return meshes.mapped(gather, mesh, (split, whole), whole)(stack, before)


def _scan(
  step: Step, everyone: Tree, carry: Tree, rows: Tree, summed: Adding | None
) -> tuple[Tree, Tree, Tree]:
  """Returns (value, carry, rest) of `step` over the leading axis of rows; value summed if asked."""
  first = jax.tree.map(lambda x: x[0], rows)
  step = jax.jit(step)  # so that its shapes and the loop share one trace
  like = jax.eval_shape(lambda: step(everyone, carry, first)[0])

  def body(state: tuple[Tree, Tree], row: Tree) -> tuple[tuple[Tree, Tree], Tree]:
    total, carry = state
    value, carry, rest = step(everyone, carry, row)
    if summed:
      return (summed.add(total, value), carry), rest
    return (total, carry), (value, rest)

  start = summed.zeros(like) if summed else ()
  (total, carry), rest = jax.lax.scan(body, (start, carry), rows)
  value, rest = (total, rest) if summed else rest
  return value, carry, rest
