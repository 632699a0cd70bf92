"""Going through a long vector part by part, so that what is derived from it stays in the cache.

On a CPU a temporary array as long as the vector costs more than the arithmetic: its memory is
fresh, and XLA writes out whatever goes into a reduction or a scatter. A loop over parts of 2**16
values reuses the same few hundred kilobytes.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PART = 1 << 16
Tree = Any


def length(block: int) -> int:
  """Returns the length of a part that is whole blocks of an even number of them, near 2**16."""
  unit = block if block % 2 == 0 else 2 * block
  return max(1, PART // unit) * unit


def stream(f: Callable[..., Tree], size: int, part: int = PART) -> Tree:
  """Returns f(start, length) of each part of 0 … size - 1, one after another.

  Args:
    f: (start, int32 scalar; length, a static integer) -> tree of vectors whose lengths are
      determined by the static one; those of the parts follow each other in the result. Called with
      `part` and with what is left over.
    size: D.
    part: values of a part.
  """
  full, rest = divmod(size, part)
  if full == 0 or (full == 1 and rest == 0):
    return f(jnp.int32(0), size)
  shapes = jax.eval_shape(lambda: f(jnp.int32(0), part))
  last = f(jnp.int32(full * part), rest) if rest else None

  def room(x: jax.ShapeDtypeStruct, y: jax.Array | None = None) -> jax.Array:
    return jnp.zeros(full * math.prod(x.shape) + (0 if y is None else y.size), x.dtype)

  out = jax.tree.map(room, shapes) if last is None else jax.tree.map(room, shapes, last)

  def put(out: jax.Array, x: jax.Array, i: jax.Array | int) -> jax.Array:
    return jax.lax.dynamic_update_slice(out, x, (i,))

  def step(i: jax.Array, out: Tree) -> Tree:
    done = f(i * part, part)
    return jax.tree.map(lambda o, x: put(o, x, i * x.size), out, done)

  out = jax.lax.fori_loop(0, full, step, out)
  if last is None:
    return out
  return jax.tree.map(lambda o, x: put(o, x, o.size - x.size), out, last)


def take(x: jax.Array, start: jax.Array, length: int) -> jax.Array:
  """Returns x[start : start + length]; a vector that is one part is not copied."""
  return x if length == x.size else jax.lax.dynamic_slice(x, (start,), (length,))


def fold(f: Callable[[Tree, jax.Array], Tree], carry: Tree, x: jax.Array, part: int = PART) -> Tree:
  """Returns the carry after f(carry, values of a part of x [D]) -> carry for one part and another.

  Args:
    f: of any length of a part; what is left over comes last.
    carry: what to begin with.
    x: [D].
    part: values of a part.
  """
  full, rest = divmod(x.size, part)
  if full:
    step = lambda i, carry: f(carry, take(x, i * part, part))
    carry = jax.lax.fori_loop(0, full, step, carry)
  return f(carry, x[full * part :]) if rest else carry
