"""The values of largest magnitude, with their indices.

Adds: no (each client has indices of its own). Floats. Biased: use it under error feedback. Error:
||decoded - x||² <= (1 - k / D) ||x||², always; no norm grows. Encoding what was decoded changes
nothing. Equal magnitudes: the lowest indices are sent.

Reference: Aji, Heafield (2017), arXiv 1704.05021; Stich et al. (2018), arXiv 1809.07599.
"""

import jax.numpy as jnp

from fedjax_mem.core import Layer, tree, wire
from fedjax_mem.kernels.order import topk
from fedjax_mem.stages.compress import _sparse as sparse
from fedjax_mem.stages.compress._base import (
  KEPT,
  Code,
  Codec,
  Keys,
  Shapes,
  layer_of,
  mask_size,
  size,
  split,
)


def top_k(fraction: float | None = None, *, k: int | None = None, per_leaf: bool = False) -> Layer:
  """Returns the layer that sends the k values of largest magnitude of an update.

  On the wire: the indices, as a bitmap or as gaps, whichever is shorter, and float32 values.

  Args:
    fraction: k / D, in (0, 1], rounded, at least one value; or
    k: how many values, from 1 to D.
    per_leaf: choose from each array: a fraction of it, or k of it (all of it, if it is smaller).

  Raises:
    ValueError: an argument is out of range; k > D is told when the round is planned.
  """
  sparse.check(k, fraction)

  def counts(shapes: Shapes) -> list[int]:
    sizes = [size((shape,)) for shape in shapes] if per_leaf else [size(shapes)]
    return [min(n, sparse.resolve(n, k, fraction)) for n in sizes]

  def check(shapes: Shapes) -> None:
    largest = max(size((shape,)) for shape in shapes)
    sparse.check_size(largest if per_leaf else size(shapes), k)

  def encode(draws: Keys, x, shapes: Shapes) -> Code:
    del draws
    vectors = split(x, shapes) if per_leaf else [x]
    values, places, start = [], [], 0
    for vector, count in zip(vectors, counts(shapes), strict=True):
      if vector.size:
        chosen, at = topk.pack(vector, count)
        values.append(chosen)
        places.append(at + jnp.int32(start))
      start += vector.size
    indices = wire.Indices(jnp.concatenate(places), x.size)
    return Code((indices,), jnp.concatenate(values))

  def decode(draws: Keys, code: Code, shapes: Shapes):
    del draws
    (indices,) = code.parts
    return topk.unpack(code.rest, indices.values, size(shapes))

  def estimate(draws: Keys, x, shapes: Shapes):
    del draws
    (count,) = counts(shapes)
    x = tree.ravel(x)
    values, mask = topk.kept(x, count)
    return split(values, shapes), mask_size(mask, x.size)

  def error(shapes: Shapes) -> float:
    sizes = [size((shape,)) for shape in shapes] if per_leaf else [size(shapes)]
    return 1 - min(c / n for c, n in zip(counts(shapes), sizes, strict=True) if n)

  left = lambda shapes: ((sum(counts(shapes)),),)
  whole = None if per_leaf else estimate
  return layer_of(
    Codec('top_k', encode, decode, left, check, error=error, bounds=KEPT, estimate=whole)
  )
