"""Arithmetic on pytrees of arrays: short names for the operations that most stages need."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import groups, packing

Tree = Any
T = TypeVar('T')


def _map(f: Callable[..., Any], tree: T, *others: T) -> T:
  """Returns `jax.tree.map`, typed: the result has the type of the trees."""
  mapped: T = jax.tree.map(f, tree, *others)
  return mapped


def _lift(c: jax.Array, x: jax.Array) -> jax.Array:
  """Returns `c` of shape [...] with trailing axes added, so that it broadcasts against `x`."""
  return c.reshape(c.shape + (1,) * (x.ndim - c.ndim))


def add(a: T, b: T) -> T:
  """Returns a + b, leaf by leaf."""
  return _map(jnp.add, a, b)


def sub(a: T, b: T) -> T:
  """Returns a - b, leaf by leaf."""
  return _map(jnp.subtract, a, b)


def scale(c: jax.typing.ArrayLike, tree: T) -> T:
  """Returns c * tree in the tree's dtypes; `c` is a scalar or, for a stack [C, ...], [C]."""
  c = jnp.asarray(c)
  return _map(lambda x: _lift(c, x).astype(x.dtype) * x, tree)


def zeros(like: Tree) -> Tree:
  """Returns zeros of the shapes and dtypes of `like` (arrays or `ShapeDtypeStruct`s)."""
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)


def select(on: jax.Array, a: T, b: T) -> T:
  """Returns a where `on`, else b; `on` is a boolean scalar or, for stacks [C, ...], [C].

  A plain `where`: values that are not finite in the tree that is not taken have no effect.
  """
  return _map(lambda x, y: jnp.where(_lift(on, x), x, y), a, b)


def keep(on: jax.Array, tree: T) -> T:
  """Returns the tree where `on`, else exact zeros (even where the tree is NaN)."""
  kept = lambda x: jnp.where(_lift(on, x), x, jnp.zeros((), x.dtype))
  return _map(kept, tree) if jnp.ndim(on) else packing.at_once(kept, tree)


def total(tree: T) -> T:
  """Returns the sum over the leading axis of every leaf, in the leaf's own dtype."""

  def one(x: jax.Array) -> jax.Array:
    if x.dtype != jnp.float32 or x.ndim < 2:
      return x.sum(0, dtype=x.dtype)
    # As a matrix product: XLA's CPU back end reduces the leading axis column by column, which is
    # some 50 times slower.
    return jnp.einsum('c...,c->...', x, jnp.ones(len(x), x.dtype), precision='highest')

  return _map(one, tree)


def ravel(tree: Tree, axes: int = 0) -> jax.Array:
  """Returns all values in float32, leaf after leaf: [D], or [..., D] behind `axes` leading axes."""
  leaves = jax.tree.leaves(tree)
  lead = leaves[0].shape[:axes] if leaves else (0,) * axes
  sizes = [math.prod(x.shape[axes:]) for x in leaves]
  *starts, size = np.cumsum([0, *sizes]).tolist()
  parts = [
    (start, x.astype(jnp.float32).reshape((*lead, n)))
    for x, start, n in zip(leaves, starts, sizes, strict=True)
  ]
  if not parts:
    return jnp.zeros((*lead, 0), jnp.float32)
  # `jnp.concatenate` takes five times as long as copying the leaves: XLA's CPU back end fuses it
  # with what follows, and then searches the leaf of every single value. The copies must not start
  # from zeros: updates of a constant become a padding, whose fused operand is computed value by
  # value. So they start from an iota, of which nothing is left in the end.
  whole = jax.lax.broadcasted_iota(jnp.float32, (*lead, size), len(lead))
  for start, x in parts:
    whole = jax.lax.dynamic_update_slice(whole, x, (0,) * axes + (start,))
  return whole


def unravel(flat: jax.Array, like: Tree, axes: int = 0) -> Tree:
  """Returns the values [D], or [..., D], as a tree of the shapes and dtypes of `like`.

  Args:
    flat: from `ravel`.
    like: arrays or `ShapeDtypeStruct`s, with the same leading axes.
    axes: number of leading axes.
  """
  leaves, structure = jax.tree.flatten(like)
  parts, start = [], 0
  for x in leaves:
    end = start + math.prod(x.shape[axes:])
    parts.append(flat[..., start:end].reshape(x.shape).astype(x.dtype))
    start = end
  return jax.tree.unflatten(structure, parts)


def floats(tree: T) -> T:
  """Returns the tree in float32."""
  return _map(lambda x: x.astype(jnp.float32), tree)


def not_floats(tree: Tree) -> list[Any]:
  """Returns the dtypes of the leaves that are not floats."""
  return [x.dtype for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jnp.floating)]


def squared_norm(tree: Tree) -> jax.Array:
  """Returns the squared L2 norm over all leaves, a float32 scalar."""
  leaves = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)]
  return sum(leaves, jnp.float32(0))


def norm(tree: Tree) -> jax.Array:
  """Returns the L2 norm over all leaves, a float32 scalar."""
  return jnp.sqrt(squared_norm(tree))


def finite(tree: Tree, axes: int = 0) -> jax.Array:
  """Returns whether every value is finite, a boolean per row of the `axes` leading axes.

  Integer leaves are finite. An empty tree is finite (a scalar `True`).
  """
  ok: jax.Array = jnp.bool_(True)
  leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
  if groups.shared() and not axes:
    return divided_finite(leaves)
  for x in leaves if axes else packing.pack(leaves):
    # Not by a maximum: XLA's CPU back end loses NaN in it, from some thousand values on. Nor by a
    # sum of 0 * x: a product before it may be made one with 0.
    ok = ok & jnp.isfinite(x.reshape((*x.shape[:axes], -1))).all(-1)
  return ok


def divided_finite(tree: Tree) -> jax.Array:
  """Returns what `finite` does, of arrays that are divided over devices, and that stay so."""
  leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
  return jnp.stack([jnp.isfinite(x).all() for x in leaves] or [jnp.bool_(True)]).all()


def shapes(tree: Tree) -> Tree:
  """Returns the tree with `ShapeDtypeStruct`s for leaves."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def size(tree: Tree) -> int:
  """Returns the number of values in all leaves."""
  return sum(x.size for x in jax.tree.leaves(tree))


def nbytes(tree: Tree) -> int:
  """Returns the bytes of all leaves (arrays or `ShapeDtypeStruct`s)."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def copy(tree: T) -> T:
  """Returns fresh, strongly typed arrays, so that donating them frees none of the caller's."""
  return _map(lambda x: jnp.array(x, dtype=jnp.asarray(x).dtype, copy=True), tree)
