"""Groups of devices that share the parameters of a model, and go through loops in step.

The compiler divides what a group computes of divided parameters, and lets its devices exchange
parts. Some exchanges (a permutation, on a CPU) wait for all devices of the mesh, and not only for
those of the group. So in a loop that trains, all groups have to make equally many passes: as many
as the largest of their clients needs, in which the others keep what they have.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

T = TypeVar('T')

AXIS = 'clients'  # of the mesh: over it clients are divided
MODEL = 'model'  # over it parameters are divided, if it is there


def shared() -> bool:
  """Returns whether arrays of what is being traced may be divided over the devices of a group.

  Their values must then not be packed into one vector: it would be whole on every device.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return MODEL in mesh.axis_names and MODEL not in mesh.manual_axes


def in_step(count: jax.Array) -> jax.Array:
  """Returns the largest of the counts of all groups, for a trip count; `count` without groups.

  Args:
    count: int32, of what runs on this group now.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if MODEL not in mesh.axis_names or AXIS not in mesh.manual_axes:
    return count
  most: jax.Array = jax.lax.pmax(count, AXIS)
  return most


def loop(count: jax.Array | int, body: Callable[[jax.Array, T], T], carry: T) -> T:
  """Returns the carry after `count` passes of body(number, carry), with all groups in step.

  Args:
    count: a number that is the same for all, or an int32 of what runs on this group now.
    body: one pass.
    carry: before the first.
  """
  most = count if isinstance(count, int) else in_step(count)

  def pass_over(number: jax.Array, carry: T) -> T:
    new = body(number, carry)
    if most is count:
      return new
    kept: T = jax.tree.map(lambda a, b: jnp.where(number < count, a, b), new, carry)
    return kept

  done: T = jax.lax.fori_loop(0, most, pass_over, carry)
  return done
