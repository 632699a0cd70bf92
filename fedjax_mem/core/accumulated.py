"""Losses whose batch is taken in parts, so that a step needs the memory of one part.

The gradient of a sum over examples is the sum of the gradients over parts of them. A loop over the
parts finds value and gradient of each at once and adds them up: nothing of a part is kept but its
share of the sum, and the result is that of the whole batch up to rounding.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import tree
from fedjax_mem.core.examples import Batch
from fedjax_mem.core.tree import Tree

# (params, batch, key) -> losses [B]
Loss = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Accumulated:
  """A loss (params, batch, key=None) -> [B] that looks at parts of a batch, one after another.

  Parts are of ceil(B / parts) rows; the last one is filled up by repeated rows, which do not count.
  A part has a key of its own: what a loss draws (dropout) is not what it draws for a whole batch.

  >>> loss = lambda params, batch, key: (params - batch['x']) ** 2
  >>> parts, batch = Accumulated(loss, 2), {'x': jnp.array([1.0, 2.0, 6.0])}
  >>> parts(jnp.float32(0), batch).tolist()
  [1.0, 4.0, 36.0]
  >>> jax.grad(parts.total)(jnp.float32(0), batch, jnp.array([True, True, False])).item()
  -6.0

  Attributes:
    loss: of the examples, each by itself.
    parts: number of parts, at least 1.
  """

  loss: Loss
  parts: int

  def __call__(self, params: Tree, batch: Batch, key: Any = None) -> jax.Array:
    """Returns the losses [B]. Their gradient computes the losses of each part again."""
    count = _rows(batch)
    size = -(-count // self.parts)
    if size == count:
      return self.loss(params, batch, key)

    @jax.checkpoint
    def one(params: Tree, part: Batch, number: jax.Array) -> jax.Array:
      each: jax.Array = self.loss(params, part, _key(key, number))
      return each

    parts = _cut(batch, size)
    walk = lambda carry, at: (carry, one(params, *at))
    losses: jax.Array = jax.lax.scan(walk, (), (parts, _numbers(parts)))[1]
    return losses.reshape(-1, *losses.shape[2:])[:count]

  def total(self, params: Tree, batch: Batch, mask: jax.Array, key: Any = None) -> jax.Array:
    """Returns the sum of the losses over the examples in `mask` [B], a number.

    It is differentiable by the parameters alone, once, and in reverse mode only: where a gradient
    is taken, it is found with the losses.
    """
    size = -(-len(mask) // self.parts)
    if size == len(mask):
      return _masked(self.loss, params, batch, mask, key)
    parts, masks = _cut(batch, size), _cut(mask, size)
    # Rows that fill up the last part repeat a row, which may be in the mask.
    real = jnp.arange(masks.size).reshape(masks.shape) < len(mask)
    return _total(self.loss, params, (parts, masks & real), key)


def summed(loss: Loss, params: Tree, batch: Batch, mask: jax.Array, key: Any) -> jax.Array:
  """Returns the sum of a loss over the examples in `mask` [B], a number; 0 if there is none.

  Raises:
    ValueError: the loss does not return one value per example.
  """
  if isinstance(loss, Accumulated):
    return loss.total(params, batch, mask, key)
  return _masked(loss, params, batch, mask, key)


def _masked(loss: Loss, params: Tree, batch: Batch, mask: jax.Array, key: Any) -> jax.Array:
  losses = loss(params, batch, key)
  if losses.shape != mask.shape:
    raise ValueError(
      f'loss must return one value per example, shape {mask.shape!r}, got {losses.shape!r}.'
    )
  # `where`, not a product: the loss of a padded example may be infinite, and 0 * inf is not 0.
  return jnp.where(mask, losses, 0.0).sum()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(loss: Loss, params: Tree, parts: tuple[Batch, jax.Array], key: Any) -> jax.Array:
  """Returns the sum of the losses of all parts.

  Args:
    loss: of the examples.
    params: parameters.
    parts: (examples, mask) of the parts, [parts, rows, ...].
    key: PRNG key, or None.
  """
  total: jax.Array = _walk(functools.partial(_masked, loss, params), jnp.float32(0), parts, key)
  return total


# A derivative of its own: that of the loop would keep what each part computes until it is over.
def _forward(
  loss: Loss, params: Tree, parts: tuple[Batch, jax.Array], key: Any
) -> tuple[jax.Array, Tree]:
  """Returns (the sum, its gradient)."""
  one = lambda *at: jax.value_and_grad(lambda params: _masked(loss, params, *at))(params)
  found: tuple[jax.Array, Tree] = _walk(one, (jnp.float32(0), tree.zeros(params)), parts, key)
  return found


def _backward(loss: Loss, grads: Tree, cotangent: jax.Array) -> tuple[Tree, None, None]:
  """Returns the gradient times the cotangent; examples and keys have none."""
  del loss
  return tree.scale(cotangent, grads), None, None


_total.defvjp(_forward, _backward)


def _walk(one: Callable[..., Any], start: Any, parts: tuple[Batch, jax.Array], key: Any) -> Any:
  """Returns the sum over the parts of one(batch, mask, key), begun at zeros."""

  def step(carry: Any, at: tuple[tuple[Batch, jax.Array], jax.Array]) -> tuple[Any, None]:
    (batch, mask), number = at
    return tree.add(carry, one(batch, mask, _key(key, number))), None

  return jax.lax.scan(step, start, (parts, _numbers(parts)))[0]


def _key(key: Any, number: jax.Array) -> Any:
  return None if key is None else jax.random.fold_in(key, number)


def _rows(batch: Any) -> int:
  """Returns B."""
  return int(jax.tree.leaves(batch)[0].shape[0])


def _numbers(parts: Any) -> jax.Array:
  """Returns 0, 1, … for each part."""
  return jnp.arange(_rows(parts), dtype=jnp.int32)


def _cut(batch: Any, size: int) -> Any:
  """Returns arrays [B, ...] as [parts, size, ...]; the last row is repeated at the end."""

  def one(x: jax.Array) -> jax.Array:
    rest = -len(x) % size
    if rest:
      x = jnp.concatenate([x, jnp.broadcast_to(x[-1:], (rest, *x.shape[1:]))])
    return x.reshape(-1, size, *x.shape[1:])

  return jax.tree.map(one, batch)
