"""Loops over a long vector part by part, so that what is derived from it stays in the cache.

On a CPU a temporary array as long as a long vector costs more than the arithmetic: its memory is
fresh, and XLA writes out whatever goes into a reduction or a scatter. A loop over parts uses the
same memory again and again.

| function | what it returns | memory written |
|---|---|---|
| `stream` | the results of all parts, one after another | new |
| `replace` | a vector with each part replaced | that of the vector |
| `fold` | a value updated by each part | the value's |

Worked example, with parts of 4 values:

>>> x = jnp.arange(10)
>>> fold(lambda total, part: total + part.sum(), jnp.int32(0), x, part=4).tolist()
45
>>> replace(lambda start, part: part - start, x, part=4).tolist()
[0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
>>> stream(lambda start, length: 2 * take(x, start, length), 10, block=4, part=4).tolist()
[0, 2, 4, 6, 8, 10, 12, 14, 16, 18]

The parts are 0 … 3, 4 … 7 and the rest, 8 and 9: results must not depend on how a vector is split.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

# Values of a part. SMALL: 256 KiB of float32, which stays in a core's own cache.
SMALL = 1 << 16
# LARGE: 4 MiB, enough to divide among cores, for work that XLA divides (draws, products, what goes
# value by value).
LARGE = 1 << 20
Tree = Any
_Carry = TypeVar('_Carry')


def split(size: int, block: int = 1, part: int = LARGE) -> tuple[int, int]:
  """Returns (number, length) of equal parts of 0 … size - 1, each of whole blocks.

  (0, 0) means that the vector is too short to be worth a loop. What is left over after the parts is
  shorter than a part.

  >>> split(3_000_000), split(1000, block=64, part=64), split(100)
  ((3, 1000000), (15, 64), (0, 0))

  Args:
    size: D.
    block: the length of a part is a multiple of it; blocks as long as a part are the parts.
    part: values of a part, about.
  """
  if block >= part:
    return (size // block, block) if size > block else (0, 0)
  if size <= part // 16:
    return 0, 0
  # At least two parts: XLA takes a loop of one turn apart, and may then compute what the loop would
  # have written to memory again in each place where it is used.
  length = size // max(2, round(size / part)) // block * block
  return (size // length, length) if length else (0, 0)


def stream(f: Callable[..., Tree], size: int, block: int = 1, part: int = LARGE) -> Tree:
  """Returns f(start, length) of each part of 0 … size - 1, one after another.

  What does not fill a block is a part of its own, so that no other part has to be padded.

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
  # The equal parts, then whole blocks that are left, then values that do not fill a block. For
  # D = 1,000, blocks of 64 and parts of 192: 5 parts up to 960, no block, the last 40 values.
  begin, end = count * length, size // block * block
  last = [f(jnp.int32(i), j - i) for i, j in ((begin, end), (end, size)) if j > i]
  # The shapes of one part's results, without computing them: they give the size of the output.
  each = jax.eval_shape(lambda: f(jnp.int32(0), length))

  def put(out: jax.Array, x: jax.Array, at: jax.Array | int) -> jax.Array:
    return jax.lax.dynamic_update_slice(out, x, (at,))

  def room(x: jax.ShapeDtypeStruct, *rest: jax.Array) -> jax.Array:
    return jnp.zeros(count * x.size + sum(y.size for y in rest), x.dtype)

  def step(i: jax.Array, out: Tree) -> Tree:
    return jax.tree.map(lambda o, x: put(o, x, i * x.size), out, f(i * length, length))

  # XLA updates the carry of a loop in place: nothing is concatenated, which would copy.
  out = jax.lax.fori_loop(0, count, step, jax.tree.map(room, each, *last))
  filled = jax.tree.map(lambda x: count * x.size, each)
  for x in last:
    out = jax.tree.map(put, out, x, filled)
    filled = jax.tree.map(lambda at, y: at + y.size, filled, x)
  return out


def replace(
  f: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, part: int = SMALL
) -> jax.Array:
  """Returns x [D] with every part of it replaced by f(start, values), in its own memory.

  Args:
    f: (start, int32 scalar; values [n]) -> [n] in the dtype of x; n is `part`, or less for what is
      left over at the end.
    x: [D].
    part: values of a part.
  """
  full, rest = divmod(x.size, part)

  def step(i: jax.Array, x: jax.Array) -> jax.Array:
    new = f(i * part, take(x, i * part, part))
    return jax.lax.dynamic_update_slice(x, new, (i * part,))

  if rest:
    # First, so that the result is the output of the loop: what uses it then reads memory, and is
    # not fused with the update of the last part.
    at = full * part
    x = jax.lax.dynamic_update_slice(x, f(jnp.int32(at), x[at:]), (at,))
  return jax.lax.fori_loop(0, full, step, x) if full else x


def take(x: jax.Array, start: jax.Array, length: int) -> jax.Array:
  """Returns x[start : start + length]; a vector that is one part is not copied.

  Args:
    x: [D].
    start: int32 scalar, traced or not; a static slice would need it at compile time.
    length: static, at most D.
  """
  return x if length == x.size else jax.lax.dynamic_slice(x, (start,), (length,))


def fold(
  f: Callable[[_Carry, jax.Array], _Carry], carry: _Carry, x: jax.Array, part: int = SMALL
) -> _Carry:
  """Returns the carry after carry = f(carry, values) for each part of x [D] in turn.

  Args:
    f: (carry, values [n]) -> carry; n is `part`, or less for what is left over, which comes last.
    carry: the initial value.
    x: [D].
    part: values of a part.
  """
  full, rest = divmod(x.size, part)
  if full:
    step = lambda i, carry: f(carry, take(x, i * part, part))
    carry = jax.lax.fori_loop(0, full, step, carry)
  return f(carry, x[full * part :]) if rest else carry
