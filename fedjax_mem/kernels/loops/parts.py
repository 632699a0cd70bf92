"""Going through a long vector part by part, so that what is derived from it stays in the cache.

On a CPU a temporary array as long as a long vector costs more than the arithmetic: its memory is
fresh, and XLA writes out whatever goes into a reduction or a scatter. A loop over parts uses the
same memory again and again. `SMALL` parts stay in a core's own cache; `LARGE` ones are worth
dividing among cores, for work that XLA divides (draws, products, what goes value by value).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

SMALL = 1 << 16
LARGE = 1 << 20
Tree = Any


def split(size: int, block: int = 1, part: int = LARGE) -> tuple[int, int]:
  """Returns (number, length) of the equal parts of 0 … size - 1, each of whole blocks.

  At least two if there are two blocks: what a loop has written is in memory, and not computed again
  in the middle of what uses it. What is left over is shorter than a part. Blocks as long as a part
  are the parts. (0, 0): a vector too short to be worth a loop.
  """
  if block >= part:
    return (size // block, block) if size > block else (0, 0)
  if size <= part // 16:
    return 0, 0
  length = size // max(2, round(size / part)) // block * block
  return (size // length, length) if length else (0, 0)


def stream(f: Callable[..., Tree], size: int, block: int = 1, part: int = LARGE) -> Tree:
  """Returns f(start, length) of each part of 0 … size - 1, one after another.

  What does not fill a block is a part of its own, so that no other has to be padded.

  Args:
    f: (start, int32 scalar; length, a static integer) -> tree of vectors whose lengths are
      determined by the static one; those of the parts follow each other in the result.
    size: D.
    block: parts begin at multiples of it.
    part: values of a part, about.
  """
  count, length = split(size, block, part)
  if not count:
    return f(jnp.int32(0), size)
  begin, end = count * length, size // block * block
  last = [f(jnp.int32(i), j - i) for i, j in ((begin, end), (end, size)) if j > i]
  each = jax.eval_shape(lambda: f(jnp.int32(0), length))

  def put(out: jax.Array, x: jax.Array, at: jax.Array | int) -> jax.Array:
    return jax.lax.dynamic_update_slice(out, x, (at,))

  def room(x: jax.ShapeDtypeStruct, *rest: jax.Array) -> jax.Array:
    return jnp.zeros(count * x.size + sum(y.size for y in rest), x.dtype)

  def step(i: jax.Array, out: Tree) -> Tree:
    return jax.tree.map(lambda o, x: put(o, x, i * x.size), out, f(i * length, length))

  out = jax.lax.fori_loop(0, count, step, jax.tree.map(room, each, *last))
  filled = jax.tree.map(lambda x: count * x.size, each)
  for x in last:
    out = jax.tree.map(put, out, x, filled)
    filled = jax.tree.map(lambda at, y: at + y.size, filled, x)
  return out


def replace(
  f: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, part: int = SMALL
) -> jax.Array:
  """Returns x [D] with every part of it replaced by f(start, values) of as many, in its own memory.

  Args:
    f: of a whole part, and of what is left over at the end.
    x: [D].
    part: values of a part.
  """
  full, rest = divmod(x.size, part)

  def step(i: jax.Array, x: jax.Array) -> jax.Array:
    new = f(i * part, take(x, i * part, part))
    return jax.lax.dynamic_update_slice(x, new, (i * part,))

  if rest:
    # First, so that the result is what the loop has written, and whoever reads it reads just that.
    at = full * part
    x = jax.lax.dynamic_update_slice(x, f(jnp.int32(at), x[at:]), (at,))
  return jax.lax.fori_loop(0, full, step, x) if full else x


def take(x: jax.Array, start: jax.Array, length: int) -> jax.Array:
  """Returns x[start : start + length]; a vector that is one part is not copied."""
  return x if length == x.size else jax.lax.dynamic_slice(x, (start,), (length,))


def fold(
  f: Callable[[Tree, jax.Array], Tree], carry: Tree, x: jax.Array, part: int = SMALL
) -> Tree:
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
