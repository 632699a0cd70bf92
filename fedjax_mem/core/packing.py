"""Trees as few vectors, so that what follows is compiled once and not once for every leaf.

A compiler makes a kernel of every operation on every array, and each takes its time: a round has
a dozen passes over all arrays of the parameters. `at_once` runs such a pass on vectors, `Packed` is
a tree that stays packed while it is summed. Values are those of the pass leaf by leaf.
"""

import dataclasses
import functools
import math
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from fedjax_mem.core import groups

T = TypeVar('T')

# Values from which on leaves are copied into their vector one after another. Up to there the
# compiler may compute every value of the vector where it is used, and search its leaf for it.
_COPIED = 4096

# What was cut off vectors and is still in use: the identity of a leaf -> (the leaf, the vector,
# where the leaf starts).
_CUT: dict[int, tuple[weakref.ref[Any], jax.Array, int]] = {}


def pack(tree: Any) -> list[jax.Array]:
  """Returns all values as vectors: for each dtype one of its arrays and one of its scalars.

  The leaves of a vector that was cut up (`unpack`) are that vector again: nothing is copied.
  """
  leaves = jax.tree.leaves(tree)
  return [_joined([leaves[i] for i in places]) for _, places in _alike(leaves)]


def _joined(leaves: list[Any]) -> jax.Array:
  """Returns the leaves as one vector."""
  whole = _uncut(leaves)
  if whole is not None:
    return whole
  flat = [jnp.reshape(x, -1) for x in leaves]
  if len(flat) == 1:
    return flat[0]
  if sum(x.size for x in flat) < _COPIED:
    return jnp.concatenate(flat)
  # Along the second axis: of vectors, XLA's CPU back end fuses a concatenation with what it is made
  # of and with what follows, and then searches the leaf of every single value.
  return jnp.concatenate([x.reshape(1, -1) for x in flat], 1).reshape(-1)


def _uncut(leaves: list[Any]) -> jax.Array | None:
  """Returns the vector that was cut into these leaves, all of them in this order, or None."""
  cuts = [_CUT.get(id(x)) for x in leaves]
  first, end = cuts[0], 0
  for leaf, size, cut in zip(leaves, map(jnp.size, leaves), cuts, strict=True):
    if not (first and cut and cut[0]() is leaf and cut[1] is first[1] and cut[2] == end):
      return None
    end += size
  return first[1] if first and first[1].size == end else None


def unpack(vectors: list[jax.Array], like: T, axes: int = 0) -> T:
  """Returns the values as a tree of the shapes of `like`.

  Args:
    vectors: from `pack`, possibly with leading axes.
    like: what was packed, arrays or `ShapeDtypeStruct`s.
    axes: number of leading axes of the vectors, which `like` does not have.
  """
  leaves, structure = jax.tree.flatten(like)
  made: list[Any] = [None] * len(leaves)
  for vector, (_, places) in zip(vectors, _alike(leaves), strict=True):
    start = 0
    for i in places:
      end = start + math.prod(leaves[i].shape)
      made[i] = vector[..., start:end].reshape((*vector.shape[:axes], *leaves[i].shape))
      if not axes and made[i] is not vector:  # else it would hold itself
        _CUT[id(made[i])] = weakref.ref(made[i], _forgetting(id(made[i]))), vector, start
      start = end
  whole: T = jax.tree.unflatten(structure, made)
  return whole


def _forgetting(number: int) -> Callable[[Any], None]:
  """Returns what is called when the leaf of this identity is gone."""
  held = _CUT  # at the end of the process modules lose their names first
  return lambda _: held.pop(number, None) and None


def _alike(leaves: list[Any]) -> list[tuple[Any, list[int]]]:
  """Returns (what they are, positions) of the leaves that `pack` puts into one vector."""
  groups: dict[Any, list[int]] = {}
  for i, x in enumerate(leaves):
    groups.setdefault((jnp.result_type(x), jnp.ndim(x) > 0), []).append(i)
  return list(groups.items())


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=['vectors'], meta_fields=['structure', 'leaves']
)
@dataclasses.dataclass(frozen=True)
class Packed:
  """A tree as few vectors (`pack`), with what it takes to `open` it.

  Attributes:
    vectors: the values.
    structure: of the tree (static).
    leaves: their shapes and dtypes (static).
  """

  vectors: list[jax.Array]
  structure: Any
  leaves: tuple[jax.ShapeDtypeStruct, ...]

  @staticmethod
  def of(tree: Any) -> 'Packed':
    """Returns the tree, packed."""
    leaves, structure = jax.tree.flatten(tree)
    shapes = (jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves)
    return Packed(pack(tree), structure, tuple(shapes))

  def open(self, axes: int = 0) -> Any:
    """Returns the tree; its leaves have `axes` leading axes more, as the vectors have."""
    return unpack(self.vectors, jax.tree.unflatten(self.structure, self.leaves), axes)


def at_once(f: Callable[..., jax.Array], tree: T, *others: T) -> T:
  """Returns f(vector, other vectors) of all values, which it changes one by one, as a tree.

  Where `f` runs seldom, as after local training: within a loop over steps packing takes longer than
  what it saves.

  >>> twice = at_once(lambda x: 2 * x, {'a': jnp.ones(2), 'b': jnp.float32(3)})
  >>> twice['a'].tolist(), float(twice['b'])
  ([2.0, 2.0], 6.0)
  """
  trees = (tree, *others)
  kinds = [_alike(jax.tree.leaves(x)) for x in trees]
  if groups.shared() or any(kind != kinds[0] for kind in kinds):
    mapped: T = jax.tree.map(f, *trees)  # they are divided, or their dtypes differ
    return mapped
  return unpack([f(*vectors) for vectors in zip(*map(pack, trees), strict=True)], tree)
