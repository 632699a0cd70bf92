"""A matrix product over many rows, whose backward pass hands the compiler no transposed operand.

The gradient of a kernel is x^T @ d_y, a sum over all rows. XLA's CPU back end (jax 0.10) takes the
transposition into the product, and that runs at about two thirds of the speed of the same product
of a transposed copy. The copy of x itself is small beside it: for 800 rows, 256 inputs and 1,024
outputs it takes a fifteenth of the time.

>>> x, kernel = jnp.arange(6.0).reshape(3, 1, 2), jnp.ones((2, 1))
>>> product(x, kernel).ravel().tolist()
[1.0, 5.0, 9.0]
>>> jax.grad(lambda kernel: product(x, kernel).sum())(kernel).ravel().tolist()
[6.0, 9.0]
"""

import jax
import jax.numpy as jnp
from jax import lax


def kernel_gradient(x: jax.Array, d_y: jax.Array) -> jax.Array:
  """Returns the sum of outer products over all rows, x^T @ d_y, [F, G].

  Args:
    x: [..., F].
    d_y: [..., G], with the same leading axes.
  """
  rows = x.reshape(-1, x.shape[-1])
  # The barrier keeps XLA from taking the transposition back into the product.
  total: jax.Array = lax.optimization_barrier(rows.T) @ d_y.reshape(-1, d_y.shape[-1])
  return total


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns x @ kernel."""
  return jnp.matmul(x, kernel)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  """Returns (the product, (x, kernel) for `_backward`)."""
  return _product(x, kernel), (x, kernel)


def _backward(
  kept: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the gradients of (x, kernel); the cotangent is of the product, [..., G]."""
  x, kernel = kept
  d_x = lax.dot_general(cotangent, kernel, (((cotangent.ndim - 1,), (1,)), ((), ())))
  return d_x, kernel_gradient(x, cotangent)


_product.defvjp(_forward, _backward)


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns x @ kernel, [..., G]. Reverse mode only: jax refuses `jvp` and second derivatives.

  Args:
    x: [..., F], at least one leading axis; for few rows a plain product is as fast.
    kernel: [F, G].

  Raises:
    ValueError: the shapes do not fit.
  """
  if kernel.ndim != 2 or x.ndim < 2 or x.shape[-1] != kernel.shape[0]:
    raise ValueError(f'kernel must be of shape [{x.shape[-1]}, G], got {kernel.shape!r}.')
  return _product(x, kernel)
