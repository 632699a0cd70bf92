"""The values of largest magnitude, with their indices.

Codes do not add: each client has its own indices. Values are floats. Biased: use it under error
feedback. Error: ||decoded - x||² <= (1 - k / D) ||x||², always; no norm grows. Encoding the decoded
vector again changes nothing. Of equal magnitudes, those at the lowest indices are sent.

Reference: Aji, Heafield (2017), arXiv 1704.05021; Stich et al. (2018), arXiv 1809.07599.
"""

import jax
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
  Vectors,
  layer_of,
  mask_size,
  size,
  split,
)


def top_k(fraction: float | None = None, *, k: int | None = None, per_leaf: bool = False) -> Layer:
  """Returns the layer that sends the k values of largest magnitude of an update.

  On the wire: the indices, as a bitmap or as gaps, whichever is shorter, and float32 values.

  >>> fm.apply([[3.0, -1.0, 0.5, -4.0]], top_k(k=2)).update.tolist()
  [3.0, 0.0, 0.0, -4.0]

  Args:
    fraction: k / D, in (0, 1]; k is rounded, and at least 1. Give either `fraction` or `k`.
    k: number of values, from 1 to D.
    per_leaf: choose from each array: a fraction of its values, or k (all of a smaller array).

  Raises:
    ValueError: an argument is out of range; k > D is checked when the round is planned.
  """
  sparse.check(k, fraction)

  def counts(shapes: Shapes) -> list[int]:
    sizes = [size((shape,)) for shape in shapes] if per_leaf else [size(shapes)]
    return [min(n, sparse.resolve(n, k, fraction)) for n in sizes]

  def check(shapes: Shapes) -> None:
    largest = max(size((shape,)) for shape in shapes)
    sparse.check_size(largest if per_leaf else size(shapes), k)

  def encode(draws: Keys, x: jax.Array, shapes: Shapes) -> Code:
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

  def decode(draws: Keys, code: Code, shapes: Shapes) -> jax.Array:
    del draws
    (indices,) = code.parts
    decoded: jax.Array = topk.unpack(code.rest, indices.values, size(shapes))
    return decoded

  def estimate(draws: Keys, x: Vectors, shapes: Shapes) -> tuple[Vectors, jax.Array]:
    del draws
    (count,) = counts(shapes)
    flat = tree.ravel(x)
    values, mask = topk.kept(flat, count)
    return split(values, shapes), mask_size(mask, flat.size)

  def error(shapes: Shapes) -> float:
    sizes = [size((shape,)) for shape in shapes] if per_leaf else [size(shapes)]
    return 1 - min(c / n for c, n in zip(counts(shapes), sizes, strict=True) if n)

  left = lambda shapes: ((sum(counts(shapes)),),)
  codec = Codec('top_k', encode, decode, left, check, error=error, bounds=KEPT)
  return layer_of(codec if per_leaf else codec._replace(estimate=estimate))
