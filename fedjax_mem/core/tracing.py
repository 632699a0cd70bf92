"""Functions that are traced once for their shapes, and not wherever they are called."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax

F = TypeVar('F', bound=Callable[..., Any])


def once(*static: int) -> Callable[[F], F]:
  """Returns a decorator: the function is traced once for all programs that call it.

  Tracing a model's forward pass and its gradient, several times each before the first round, is
  a large part of the way to it; with this only the first of equal layers is. The result must
  depend on nothing but the arguments, and what jax's contexts hold: flags, `core.platforms`.

  >>> seen = []
  >>> double = once()(lambda x: (seen.append(x.shape), 2 * x)[1])
  >>> both = jax.eval_shape(lambda x: double(double(x)), jax.ShapeDtypeStruct((3,), 'float32'))
  >>> both.shape, seen
  ((3,), [(3,)])

  Args:
    static: positions of the arguments that are no arrays; they are hashable.
  """

  def mark(function: F) -> F:
    return cast(F, jax.jit(function, static_argnums=static))

  return mark
